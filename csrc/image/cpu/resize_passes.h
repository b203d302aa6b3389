// The horizontal and the vertical pass of a resize, each over a single row.
//
// From the horizontal to the vertical pass, a byte b is the word b << 16 | b << 7. One instruction multiplies it by a
// weight of 22 bits, which is split into 7 low and 15 high bits.
#pragma once

#include <cstdint>

#include "../taps.h"
#include "pixel_vector.h"
#include "resize_params.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

constexpr uint32_t kHalf = 1 << (kWeightBits - 1);  // rounds a sum to nearest
constexpr uint32_t kSpread = 0x10080;               // times b is b << 16 | b << 7
constexpr int kChunk = 4 * kWords;                  // bytes of the result that are written at once

INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The weights in the order of the horizontal pass: for each register of pixels and each pair of taps the high bits,
// then the low 8. Offsets are in bytes from the source's column x.begin().
inline void pack_horizontal_weights(const Axis& x, int64_t size, int64_t pixels, int32_t* offsets, uint32_t* to) {
  const int64_t pairs = (x.max_taps + 1) / 2;
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t pixel = i < size ? i : size - 1;
    const int32_t* const weights = x.weights + pixel * x.max_taps;
    offsets[i] = 3 * (x.first[pixel] - x.first[0]);
    uint32_t* pair = to + (i / kPixels * pairs * 2 * kPixels + i % kPixels) * 4;
    for (int64_t k = 0; k < x.max_taps; k += 2, pair += 2 * kWords) {
      const uint32_t a = uint32_t(weights[k]), b = k + 1 < x.max_taps ? uint32_t(weights[k + 1]) : 0;
      for (int c = 0; c < 4; ++c) pair[c] = a >> 8 | b >> 8 << 16, pair[kWords + c] = (a & 255) | (b & 255) << 16;
    }
  }
}

inline void pack_vertical_weights(const Axis& y, int64_t size, uint32_t* to) {
  for (int64_t i = 0; i < size * y.max_taps; ++i) {
    const uint32_t weight = uint32_t(y.weights[i]), high = weight >> 7 < 32767 ? weight >> 7 : 32767;
    to[i] = high | (weight - (high << 7)) << 16;
  }
}

// Resizes a row of bytes to a row of pixels. kPairs: the pairs of taps, or 0 if only `pairs` has
// their number.
template <int kPairs>
INLINE void horizontal(const uint8_t* row, const int32_t* offsets, const uint32_t* weights, int64_t pixels,
                       int64_t pairs, uint32_t* to) {
  if (kPairs) pairs = kPairs;
  for (int64_t i = 0; i < pixels; i += kPixels, to += 3 * kPixels) {
    Word high = {}, low = Word{} + kHalf;
    Windows four = load_windows(row, offsets + i);  // four taps or more
#pragma GCC unroll 3
    for (int64_t pair = 0; pair < pairs; ++pair, weights += 2 * kWords) {
      if (pair && pair % 2 == 0) four = load_windows(row + 6 * pair, offsets + i);
      const Word taps = tap_pair(four, pair % 2);
      high += madd(taps, load_words(weights)), low += madd(taps, load_words(weights + kWords));
    }
    store_words(to, pack_pixels(multiply(((high << 8) + low) >> kWeightBits, kSpread)));
  }
}

inline void horizontal_pass(const uint8_t* row, const int32_t* offsets, const uint32_t* weights, int64_t pixels,
                            int64_t pairs, uint32_t* to) {
  if (pairs == 1) {
    horizontal<1>(row, offsets, weights, pixels, pairs, to);
  } else if (pairs == 2) {
    horizontal<2>(row, offsets, weights, pixels, pairs, to);
  } else if (pairs == 3) {
    horizontal<3>(row, offsets, weights, pixels, pairs, to);
  } else {
    horizontal<0>(row, offsets, weights, pixels, pairs, to);
  }
}

// A chunk of the weighted sum of `count` rows, as bytes. kCount: the same number, or 0 if only `count` has it.
template <int kCount>
INLINE Word vertical_chunk(const uint32_t* const* rows, const uint32_t* weights, int64_t count, int64_t at) {
  if (kCount) count = kCount;
  Word sum[4] = {Word{} + kHalf, Word{} + kHalf, Word{} + kHalf, Word{} + kHalf};
  for (int64_t k = 0; k < count; ++k) {
    const Word weight = Word{} + weights[k];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] += madd(load_words(rows[k] + at + v * kWords), weight);
  }
  return narrow_to_bytes(sum[0] >> kWeightBits, sum[1] >> kWeightBits, sum[2] >> kWeightBits, sum[3] >> kWeightBits);
}

INLINE Word narrow_chunk(const uint32_t* row) {
  return narrow_to_bytes(load_words(row) >> 16, load_words(row + kWords) >> 16, load_words(row + 2 * kWords) >> 16,
                         load_words(row + 3 * kWords) >> 16);
}

// Writes f(position) for each chunk of the n bytes of a row, and nothing beyond them.
template <class F>
INLINE void for_each_chunk(int64_t n, uint8_t* to, F f) {
  int64_t at = 0;
  for (; at + kChunk <= n; at += kChunk) store_words(to + at, f(at));
  if (at == n) return;
  const Word rest = f(at);
  __builtin_memcpy(to + at, &rest, size_t(n - at));
}

template <int kCount>
INLINE void vertical(const uint32_t* const* rows, const uint32_t* weights, int64_t count, int64_t n, uint8_t* to) {
  for_each_chunk(n, to, [&](int64_t at) __attribute__((always_inline)) {
    return vertical_chunk<kCount>(rows, weights, count, at);
  });
}

inline void vertical_pass(const uint32_t* const* rows, const uint32_t* weights, int64_t count, int64_t n, uint8_t* to) {
  if (count == 1) {
    vertical<1>(rows, weights, count, n, to);
  } else if (count == 2) {
    vertical<2>(rows, weights, count, n, to);
  } else if (count == 3) {
    vertical<3>(rows, weights, count, n, to);
  } else {
    vertical<0>(rows, weights, count, n, to);
  }
}

inline void narrow_row(const uint32_t* row, int64_t n, uint8_t* to) {
  for_each_chunk(n, to, [&](int64_t at) __attribute__((always_inline)) { return narrow_chunk(row + at); });
}

// Reads whole registers of bytes, beyond n if need be, and writes as many words.
inline void widen_row(const uint8_t* row, int64_t n, uint32_t* to) {
  for (int64_t at = 0; at < n; at += kWords) store_words(to + at, multiply(load_widened(row + at), kSpread));
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
