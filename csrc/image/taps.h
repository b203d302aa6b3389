// The filter taps of a resize: which pixels of a line of the source a pixel of the result is computed from, and with
// which weights. Bilinear with antialiasing, in exactly Pillow's arithmetic. Includes no header of PyTorch.
#pragma once

#include <cstdint>

namespace udskd {

constexpr int kWeightBits = 22;  // a weight of 1 is 2^22

// Whether columns are resized before rows. Intermediate results are rounded, so the order changes the result. This is
// the order of Pillow 13; Pillow up to 12 always begins with the rows.
inline bool columns_first(int64_t from_width, int64_t from_height, int64_t width, int64_t height) {
  return from_height > height && from_height - height > 2 * (from_width - width);
}

// An upper bound of the number of taps of a pixel.
int64_t tap_capacity(int64_t from, int64_t to);

// For the pixels begin ... begin + n - 1 of a line that is resized from `from` pixels to `to`: the first tap, the
// number of taps, and their weights, of which there are `capacity` for each pixel; those beyond the taps are 0. Taps of
// weight 0 at either end are left out. Returns the largest number of taps.
int64_t find_taps(int64_t from, int64_t to, int64_t begin, int64_t n, int64_t capacity, int32_t* first, int32_t* count,
                  int32_t* weights);

}  // namespace udskd
