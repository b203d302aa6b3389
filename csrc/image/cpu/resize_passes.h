// The two passes of a resize over a single row.
//
// Between reading and the vertical pass a byte b is the word b << 16 | b << 7. One instruction multiplies it by a share
// of 22 bits, which is split into 7 low and 15 high bits.
#pragma once

#include <cstdint>

#include "../taps.h"
#include "pixel_vector.h"
#include "resize_params.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

constexpr uint32_t kHalf = 1 << (kShareBits - 1), kSpread = 0x10080;
constexpr int kChunk = 4 * kWords;  // results that are written at once

INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The shares of the horizontal pass: for each register of pixels and each pair of taps the high bits, then the low 8.
// Offsets are in bytes from the source's column `begin`.
inline void lay_out_across(const Axis& x, int64_t size, int64_t pixels, int32_t* offsets, uint32_t* to) {
  const int64_t pairs = (x.most + 1) / 2;
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t pixel = i < size ? i : size - 1;
    const int32_t* const shares = x.shares + pixel * x.most;
    offsets[i] = 3 * (x.first[pixel] - x.first[0]);
    uint32_t* pair = to + (i / kPixels * pairs * 2 * kPixels + i % kPixels) * 4;
    for (int64_t k = 0; k < x.most; k += 2, pair += 2 * kWords) {
      const uint32_t a = uint32_t(shares[k]), b = k + 1 < x.most ? uint32_t(shares[k + 1]) : 0;
      for (int c = 0; c < 4; ++c) pair[c] = a >> 8 | b >> 8 << 16, pair[kWords + c] = (a & 255) | (b & 255) << 16;
    }
  }
}

inline void lay_out_down(const Axis& y, int64_t size, uint32_t* to) {
  for (int64_t i = 0; i < size * y.most; ++i) {
    const uint32_t share = uint32_t(y.shares[i]), high = share >> 7 < 32767 ? share >> 7 : 32767;
    to[i] = high | (share - (high << 7)) << 16;
  }
}

// A row of pixels from one of bytes. kPairs: of taps; 0 if they are `pairs`.
template <int kPairs>
INLINE void across(const uint8_t* row, const int32_t* offsets, const uint32_t* shares, int64_t pixels, int64_t pairs,
                   uint32_t* to) {
  if (kPairs) pairs = kPairs;
  for (int64_t i = 0; i < pixels; i += kPixels, to += 3 * kPixels) {
    Word high = {}, low = Word{} + kHalf;
    Windows four = windows(row, offsets + i);
#pragma GCC unroll 3
    for (int64_t pair = 0; pair < pairs; ++pair, shares += 2 * kWords) {
      if (pair && pair % 2 == 0) four = windows(row + 6 * pair, offsets + i);
      const Word taps = two_taps(four, pair % 2);
      high += madd(taps, load_words(shares)), low += madd(taps, load_words(shares + kWords));
    }
    store_words(to, dense(times(((high << 8) + low) >> kShareBits, kSpread)));
  }
}

inline void row_across(const uint8_t* row, const int32_t* offsets, const uint32_t* shares, int64_t pixels,
                       int64_t pairs, uint32_t* to) {
  if (pairs == 1) {
    across<1>(row, offsets, shares, pixels, pairs, to);
  } else if (pairs == 2) {
    across<2>(row, offsets, shares, pixels, pairs, to);
  } else if (pairs == 3) {
    across<3>(row, offsets, shares, pixels, pairs, to);
  } else {
    across<0>(row, offsets, shares, pixels, pairs, to);
  }
}

// `count` rows, each times its share, to bytes.
template <int kCount>
INLINE Word chunk_down(const uint32_t* const* rows, const uint32_t* shares, int64_t count, int64_t at) {
  if (kCount) count = kCount;
  Word sum[4] = {Word{} + kHalf, Word{} + kHalf, Word{} + kHalf, Word{} + kHalf};
  for (int64_t k = 0; k < count; ++k) {
    const Word share = Word{} + shares[k];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] += madd(load_words(rows[k] + at + v * kWords), share);
  }
  return bytes_of(sum[0] >> kShareBits, sum[1] >> kShareBits, sum[2] >> kShareBits, sum[3] >> kShareBits);
}

INLINE Word chunk_narrowed(const uint32_t* row) {
  return bytes_of(load_words(row) >> 16, load_words(row + kWords) >> 16, load_words(row + 2 * kWords) >> 16,
                  load_words(row + 3 * kWords) >> 16);
}

// f(where) for the n bytes of a row, chunk by chunk; beyond them nothing is written.
template <class F>
INLINE void each_chunk(int64_t n, uint8_t* to, F f) {
  int64_t at = 0;
  for (; at + kChunk <= n; at += kChunk) store_words(to + at, f(at));
  if (at == n) return;
  const Word rest = f(at);
  __builtin_memcpy(to + at, &rest, size_t(n - at));
}

template <int kCount>
INLINE void down(const uint32_t* const* rows, const uint32_t* shares, int64_t count, int64_t n, uint8_t* to) {
  each_chunk(n, to,
             [&](int64_t at) __attribute__((always_inline)) { return chunk_down<kCount>(rows, shares, count, at); });
}

inline void row_down(const uint32_t* const* rows, const uint32_t* shares, int64_t count, int64_t n, uint8_t* to) {
  if (count == 1) {
    down<1>(rows, shares, count, n, to);
  } else if (count == 2) {
    down<2>(rows, shares, count, n, to);
  } else if (count == 3) {
    down<3>(rows, shares, count, n, to);
  } else {
    down<0>(rows, shares, count, n, to);
  }
}

inline void row_narrowed(const uint32_t* row, int64_t n, uint8_t* to) {
  each_chunk(n, to, [&](int64_t at) __attribute__((always_inline)) { return chunk_narrowed(row + at); });
}

// Reads whole registers of bytes, and writes as many words.
inline void row_widened(const uint8_t* row, int64_t n, uint32_t* to) {
  for (int64_t at = 0; at < n; at += kWords) store_words(to + at, times(widened(row + at), kSpread));
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
