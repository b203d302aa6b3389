// Mirrors, casts, mixes and normalises a line of pixels, and splits its channels.
#pragma once

#include <cstdint>

#include "normalize_params.h"
#include "normalize_scalar.h"
#include "pixel_vector.h"

UDSKD_SEPARATE_ROUNDING_BEGIN
UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

// Bytes, or differences of bytes, which are signed, as floats.
INLINE Single as_single(Word x) {
  typedef int32_t Integer __attribute__((vector_size(UDSKD_VECTOR_BYTES)));
  return __builtin_convertvector((Integer)x, Single);
}

INLINE Single load_singles(const float* from) {
  Single x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}

template <bool kMixed>
INLINE Single pixels_at(int64_t at, const NormalizeParams& line) {
  const Word pixels = load_widened(line.pixels + at);
  if (!kMixed) return as_single(pixels);
  const Word partner = load_widened(line.partner + at);
  return as_single(pixels - partner) * line.weight + as_single(partner);
}

// Normalises three registers at a time, after which the channels repeat, and returns the number of values. Non-temporal
// stores are no faster here, and slower where the memory is new or the result stays in the cache. `line` is a copy,
// which the stores cannot change: the compiler keeps its fields in registers.
template <bool kMixed>
INLINE int64_t three_registers(const NormalizeParams line) {
  Single factor[3], offset[3];
#pragma GCC unroll 3
  for (int k = 0; k < 3; ++k)
    factor[k] = load_singles(line.factor + k * kWords), offset[k] = load_singles(line.offset + k * kWords);
  int64_t at = 0;
  for (; at + 3 * kWords <= line.values; at += 3 * kWords)
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      const Single x = pixels_at<kMixed>(at + k * kWords, line) * factor[k] + offset[k];
      __builtin_memcpy(line.out + at + k * kWords, &x, sizeof x);
    }
  return at;
}

inline void normalize(const NormalizeParams& line) {
  normalize_from(line.partner ? three_registers<true>(line) : three_registers<false>(line), line);
}

// Loads five pixels and the byte before them at a time, so that nothing is read beyond the line.
inline void mirror(const uint8_t* from, int64_t pixels, uint8_t* to) {
  int64_t at = 0;
#if UDSKD_VECTOR_BYTES > 16
  const __m128i places = _mm_setr_epi8(13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3, 0);
  for (; at + 5 < pixels; at += 5) {
    const __m128i five = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 3 * (pixels - 5 - at) - 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * at), _mm_shuffle_epi8(five, places));
  }
#endif
  mirror_from(at, from, pixels, to);
}

inline void split(const float* __restrict from, int64_t pixels, float* __restrict planes, int64_t plane) {
  float* __restrict green = planes + plane;
  float* __restrict blue = green + plane;
  for (int64_t at = 0; at < pixels; ++at)
    planes[at] = from[3 * at], green[at] = from[3 * at + 1], blue[at] = from[3 * at + 2];
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
UDSKD_SEPARATE_ROUNDING_END
