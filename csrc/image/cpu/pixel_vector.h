// Operations on a register of pixels at each SIMD level of x86.
//
// A register holds a few pixels of four words, red, green, blue and one that is ignored. Two taps of a channel are in
// one word, as two numbers of 16 bits. One instruction multiplies both by weights of 15 bits and adds the products.
#pragma once

#include <cstdint>

#include "../../common/cpu/native.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

constexpr int kPixels = UDSKD_VECTOR_BYTES / 16, kWords = UDSKD_VECTOR_BYTES / 4;

INLINE Word load_words(const void* from) {
  Word x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
INLINE void store_words(void* to, Word x) { __builtin_memcpy(to, &x, sizeof x); }

#if UDSKD_VECTOR_BYTES == 64
using Native = __m512i;
INLINE Word madd(Word x, Word weights) { return (Word)_mm512_madd_epi16((Native)x, (Native)weights); }
INLINE Word multiply(Word x, uint32_t by) {
  Native factor = _mm512_set1_epi32(int(by));
  // Hides the constant: the compiler would multiply by shifts, which take the ports that the shuffles need.
  __asm__("" : "+v"(factor));
  return (Word)_mm512_mullo_epi32((Native)x, factor);
}
// Loads as many bytes as a register has words.
INLINE Word load_widened(const uint8_t* from) {
  return (Word)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

struct Windows {
  Native bytes;  // sixteen for each pixel: five taps
};
INLINE Windows load_windows(const uint8_t* row, const int32_t* at) {
  const auto sixteen = [&](int k) __attribute__((always_inline)) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at[k]));
  };
  Native x = _mm512_castsi128_si512(sixteen(0));
  x = _mm512_mask_broadcast_i32x4(x, 0x00f0, sixteen(1));
  x = _mm512_mask_broadcast_i32x4(x, 0x0f00, sixteen(2));
  return {_mm512_mask_broadcast_i32x4(x, 0xf000, sixteen(3))};
}
// Taps 0 and 1 (which = 0), or 2 and 3 (which = 1), of each channel.
INLINE Word tap_pair(Windows of, int which) {
  const __m128i indices = which ? _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1)
                                : _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
  return (Word)_mm512_shuffle_epi8(of.bytes, _mm512_broadcast_i32x4(indices));
}
// The three words of each pixel that are used, without gaps.
INLINE Word pack_pixels(Word x) {
  const Native indices = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0);
  return (Word)_mm512_permutexvar_epi32(indices, (Native)x);
}
// The words of four registers, which are below 256, as bytes.
INLINE Word narrow_to_bytes(Word a, Word b, Word c, Word d) {
  const Native low = _mm512_packs_epi32((Native)a, (Native)b), high = _mm512_packs_epi32((Native)c, (Native)d);
  const Native indices = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Word)_mm512_permutexvar_epi32(indices, _mm512_packus_epi16(low, high));
}
#elif UDSKD_VECTOR_BYTES == 32
using Native = __m256i;
INLINE Word madd(Word x, Word weights) { return (Word)_mm256_madd_epi16((Native)x, (Native)weights); }
INLINE Word multiply(Word x, uint32_t by) {
  Native factor = _mm256_set1_epi32(int(by));
  __asm__("" : "+x"(factor));
  return (Word)_mm256_mullo_epi32((Native)x, factor);
}
INLINE Word load_widened(const uint8_t* from) {
  return (Word)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

struct Windows {
  Native bytes;
};
INLINE Windows load_windows(const uint8_t* row, const int32_t* at) {
  return {_mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(row + at[1]),
                              reinterpret_cast<const __m128i*>(row + at[0]))};
}
INLINE Word tap_pair(Windows of, int which) {
  const __m128i indices = which ? _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1)
                                : _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
  return (Word)_mm256_shuffle_epi8(of.bytes, _mm256_broadcastsi128_si256(indices));
}
INLINE Word pack_pixels(Word x) {
  return (Word)_mm256_permutevar8x32_epi32((Native)x, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 0, 0));
}
INLINE Word narrow_to_bytes(Word a, Word b, Word c, Word d) {
  const Native low = _mm256_packs_epi32((Native)a, (Native)b), high = _mm256_packs_epi32((Native)c, (Native)d);
  const Native indices = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return (Word)_mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), indices);
}
#else
using Native = __m128i;
INLINE Word madd(Word x, Word weights) { return (Word)_mm_madd_epi16((Native)x, (Native)weights); }
INLINE Word multiply(Word x, uint32_t by) { return x * by; }
INLINE Word load_widened(const uint8_t* from) {
  int32_t four;
  __builtin_memcpy(&four, from, 4);
  const Native twos = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
  return (Word)_mm_unpacklo_epi16(twos, _mm_setzero_si128());
}

struct Windows {
  const uint8_t* bytes;
};
INLINE Windows load_windows(const uint8_t* row, const int32_t* at) { return {row + *at}; }
INLINE Word tap_pair(Windows of, int which) {
  int32_t taps[2];
  __builtin_memcpy(taps, of.bytes + 6 * which, 4), __builtin_memcpy(taps + 1, of.bytes + 6 * which + 3, 4);
  const Native both = _mm_unpacklo_epi8(_mm_cvtsi32_si128(taps[0]), _mm_cvtsi32_si128(taps[1]));
  return (Word)_mm_unpacklo_epi8(both, _mm_setzero_si128());
}
INLINE Word pack_pixels(Word x) { return x; }
INLINE Word narrow_to_bytes(Word a, Word b, Word c, Word d) {
  return (Word)_mm_packus_epi16(_mm_packs_epi32((Native)a, (Native)b), _mm_packs_epi32((Native)c, (Native)d));
}
#endif

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
