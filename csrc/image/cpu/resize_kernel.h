// Resizes a view, row by row.
//
// The rows of the source, as words, enter a ring buffer when the first row of the result needs them. The buffer holds
// as many rows as one row of the result is made of, so that rows that are read again are still in the nearest cache.
// Rows enter resized horizontally, or, where the columns are resized first, as they are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "resize_passes.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

// Where what is in the scratch.
struct Room {
  int64_t pixels, pairs, bytes_of_row, words_of_row, reach;
  int64_t offsets, across, down, ring, rows, copy, between, resized, bytes = 0;

  explicit Room(const ResizeParams& params) {
    pixels = round_up(params.size, kPixels), pairs = (params.x.most + 1) / 2;
    bytes_of_row = 3 * (params.columns_first ? params.x.end(params.size) - params.x.begin() : params.size);
    words_of_row = round_up(bytes_of_row > 3 * pixels ? bytes_of_row : 3 * pixels, kChunk) + kChunk;
    const int64_t windows = 3 * int64_t(params.x.first[params.size - 1] - params.x.first[0]) + (pairs + 1) / 2 * 12 + 4;
    reach = round_up(bytes_of_row > windows ? bytes_of_row : windows, 64);  // of a row that may be read
    offsets = take(pixels * 4), across = take(pixels * pairs * 32), down = take(params.size * params.y.most * 4);
    ring = take(params.y.most * words_of_row * 4), rows = take(params.y.most * 8), copy = take(reach);
    between = take(params.columns_first ? reach : 0), resized = take(params.columns_first ? words_of_row * 4 : 0);
  }

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 64);
    return at;
  }
};

class Resize {
 public:
  Resize(const ResizeParams& params, void* scratch)
      : params_(params), room_(params), scratch_(static_cast<uint8_t*>(scratch)) {
    lay_out_across(params.x, params.size, room_.pixels, at<int32_t>(room_.offsets), at<uint32_t>(room_.across));
    lay_out_down(params.y, params.size, at<uint32_t>(room_.down));
  }

  void run() {
    const int64_t most = params_.y.most, width = 3 * params_.size;
    auto** const rows = at<const uint32_t*>(room_.rows);
    int64_t done = params_.y.begin();
    for (int64_t y = 0; y < params_.size; ++y) {
      const int64_t first = params_.y.first[y], count = params_.y.count[y];
      for (done = done > first ? done : first; done < first + count; ++done) enter(done);
      for (int64_t k = 0; k < count; ++k) rows[k] = slot(first + k);
      finish(rows, at<uint32_t>(room_.down) + y * most, count, params_.out + y * width);
    }
  }

 private:
  const ResizeParams& params_;
  const Room room_;
  uint8_t* const scratch_;

  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  uint32_t* slot(int64_t row) const { return at<uint32_t>(room_.ring) + row % params_.y.most * room_.words_of_row; }

  // A row of the source from its first column that counts, or a copy where what is read beyond it may not be.
  const uint8_t* source(int64_t row) const {
    const uint8_t* const from = params_.box + row * params_.stride + 3 * params_.x.begin();
    if (params_.end - from >= room_.reach) return from;
    auto* const copy = at<uint8_t>(room_.copy);
    __builtin_memcpy(copy, from, size_t(params_.end - from));
    return copy;
  }

  void across(const uint8_t* row, uint32_t* to) const {
    row_across(row, at<int32_t>(room_.offsets), at<uint32_t>(room_.across), room_.pixels, room_.pairs, to);
  }

  void enter(int64_t row) const {
    params_.columns_first ? row_widened(source(row), room_.bytes_of_row, slot(row)) : across(source(row), slot(row));
  }

  void finish(const uint32_t* const* rows, const uint32_t* shares, int64_t count, uint8_t* out) const {
    if (!params_.columns_first) return row_down(rows, shares, count, room_.bytes_of_row, out);
    auto* const between = at<uint8_t>(room_.between);
    auto* const resized = at<uint32_t>(room_.resized);
    row_down(rows, shares, count, room_.bytes_of_row, between);
    across(between, resized);
    row_narrowed(resized, 3 * params_.size, out);
  }
};

inline size_t scratch_bytes(const ResizeParams& params) { return size_t(Room(params).bytes); }
inline void resize(const ResizeParams& params, void* scratch) { Resize(params, scratch).run(); }

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
