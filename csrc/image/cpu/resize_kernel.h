// Resizes a view, row by row.
//
// Rows of the source are converted to words and stored in a ring buffer when the first row of the result needs them.
// The buffer holds as many rows as a row of the result has taps, so that they are still in the L1 cache when they are
// read again. Rows are resized horizontally before they are stored, unless the columns are resized first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "resize_passes.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

// Sizes of the arrays in the scratch memory, and their offsets in bytes.
struct ScratchLayout {
  int64_t pixels, pairs, bytes_of_row, words_of_row;
  int64_t reach;  // bytes from the first one used of a row that the kernel may read
  int64_t offsets, horizontal_weights, vertical_weights, ring, rows, copy, between, resized, bytes = 0;

  explicit ScratchLayout(const ResizeParams& params) {
    pixels = round_up(params.size, kPixels), pairs = (params.x.max_taps + 1) / 2;
    bytes_of_row = 3 * (params.columns_first ? params.x.end(params.size) - params.x.begin() : params.size);
    words_of_row = round_up(bytes_of_row > 3 * pixels ? bytes_of_row : 3 * pixels, kChunk) + kChunk;
    const int64_t windows = 3 * int64_t(params.x.first[params.size - 1] - params.x.first[0]) + (pairs + 1) / 2 * 12 + 4;
    reach = round_up(bytes_of_row > windows ? bytes_of_row : windows, 64);
    offsets = take(pixels * 4), horizontal_weights = take(pixels * pairs * 32),
    vertical_weights = take(params.size * params.y.max_taps * 4);
    ring = take(params.y.max_taps * words_of_row * 4), rows = take(params.y.max_taps * 8), copy = take(reach);
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
      : params_(params), layout_(params), scratch_(static_cast<uint8_t*>(scratch)) {
    pack_horizontal_weights(params.x, params.size, layout_.pixels, at<int32_t>(layout_.offsets),
                            at<uint32_t>(layout_.horizontal_weights));
    pack_vertical_weights(params.y, params.size, at<uint32_t>(layout_.vertical_weights));
  }

  void run() {
    const int64_t max_taps = params_.y.max_taps, width = 3 * params_.size;
    auto** const rows = at<const uint32_t*>(layout_.rows);
    int64_t next = params_.y.begin();  // row of the source
    for (int64_t y = 0; y < params_.size; ++y) {
      const int64_t first = params_.y.first[y], count = params_.y.count[y];
      for (next = next > first ? next : first; next < first + count; ++next) store_row(next);
      for (int64_t k = 0; k < count; ++k) rows[k] = slot(first + k);
      write_row(rows, at<uint32_t>(layout_.vertical_weights) + y * max_taps, count, params_.out + y * width);
    }
  }

 private:
  const ResizeParams& params_;
  const ScratchLayout layout_;
  uint8_t* const scratch_;

  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  uint32_t* slot(int64_t row) const {
    return at<uint32_t>(layout_.ring) + row % params_.y.max_taps * layout_.words_of_row;
  }

  // A row of the source from the first column that has a weight: in place, or a copy where `reach` is beyond the
  // memory.
  const uint8_t* source(int64_t row) const {
    const uint8_t* const from = params_.box + row * params_.stride + 3 * params_.x.begin();
    if (params_.end - from >= layout_.reach) return from;
    auto* const copy = at<uint8_t>(layout_.copy);
    __builtin_memcpy(copy, from, size_t(params_.end - from));
    return copy;
  }

  void horizontal(const uint8_t* row, uint32_t* to) const {
    horizontal_pass(row, at<int32_t>(layout_.offsets), at<uint32_t>(layout_.horizontal_weights), layout_.pixels,
                    layout_.pairs, to);
  }

  void store_row(int64_t row) const {
    params_.columns_first ? widen_row(source(row), layout_.bytes_of_row, slot(row))
                          : horizontal(source(row), slot(row));
  }

  void write_row(const uint32_t* const* rows, const uint32_t* weights, int64_t count, uint8_t* out) const {
    if (!params_.columns_first) return vertical_pass(rows, weights, count, layout_.bytes_of_row, out);
    auto* const between = at<uint8_t>(layout_.between);
    auto* const resized = at<uint32_t>(layout_.resized);
    vertical_pass(rows, weights, count, layout_.bytes_of_row, between);
    horizontal(between, resized);
    narrow_row(resized, 3 * params_.size, out);
  }
};

inline size_t scratch_bytes(const ResizeParams& params) { return size_t(ScratchLayout(params).bytes); }
inline void resize(const ResizeParams& params, void* scratch) { Resize(params, scratch).run(); }

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
