// Which pixels of a line a resized line's pixels are made of, and in what shares: bilinear with antialiasing, in
// Pillow's very arithmetic. No PyTorch headers.
#pragma once

#include <cstdint>

namespace udskd {

constexpr int kShareBits = 22;  // a share of 1 is 2^22

// Whether the columns are resized before the rows, as Pillow 13 has it: what lies between is rounded, so the order
// shows. (Pillow up to 12 always begins with the rows.)
inline bool columns_first(int64_t from_width, int64_t from_height, int64_t width, int64_t height) {
  return from_height > height && from_height - height > 2 * (from_width - width);
}

// No position has more taps than this.
int64_t tap_room(int64_t from, int64_t to);

// For positions begin ... begin + n - 1 of a line of `from` pixels that is resized to `to`: the first pixel, the number
// of taps, and their shares, zero up to `room`. Taps without a share are left out at either end. Returns the largest
// number of taps.
int64_t find_taps(int64_t from, int64_t to, int64_t begin, int64_t n, int64_t room, int32_t* first, int32_t* count,
                  int32_t* shares);

}  // namespace udskd
