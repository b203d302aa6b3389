// Vector types of a SIMD level, and the operations whose instructions compilers do not generate from plain C++.
#pragma once

#include <cstdint>

#include "intrinsics.h"
#include "level.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

#define INLINE inline __attribute__((always_inline))

typedef float Single __attribute__((vector_size(UDSKD_VECTOR_BYTES)));
typedef double Double __attribute__((vector_size(UDSKD_VECTOR_BYTES)));
typedef uint32_t Word __attribute__((vector_size(UDSKD_VECTOR_BYTES)));
typedef uint64_t LongWord __attribute__((vector_size(UDSKD_VECTOR_BYTES)));
// As many values of 16 bits as Single has of 32.
typedef uint16_t Narrow __attribute__((vector_size(UDSKD_VECTOR_BYTES / 2)));

// The larger and the smaller of two numbers. A NaN in x is kept.
#if UDSKD_X86 && UDSKD_VECTOR_BYTES == 64
INLINE Single at_least(Single floor, Single x) { return (Single)_mm512_max_ps((__m512)floor, (__m512)x); }
INLINE Single at_most(Single roof, Single x) { return (Single)_mm512_min_ps((__m512)roof, (__m512)x); }
INLINE Word zero_extended(Narrow x) { return (Word)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE Narrow low_half(Word x) { return (Narrow)_mm512_cvtepi32_epi16((__m512i)x); }
INLINE Single from_half(Narrow x) { return (Single)_mm512_cvtph_ps((__m256i)x); }
INLINE Narrow to_half(Single x) { return (Narrow)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#elif UDSKD_X86 && UDSKD_VECTOR_BYTES == 32
INLINE Single at_least(Single floor, Single x) { return (Single)_mm256_max_ps((__m256)floor, (__m256)x); }
INLINE Single at_most(Single roof, Single x) { return (Single)_mm256_min_ps((__m256)roof, (__m256)x); }
INLINE Word zero_extended(Narrow x) { return (Word)_mm256_cvtepu16_epi32((__m128i)x); }
INLINE Narrow low_half(Word x) {  // of words below 2^16
  const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  return (Narrow)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
INLINE Single from_half(Narrow x) { return (Single)_mm256_cvtph_ps((__m128i)x); }
INLINE Narrow to_half(Single x) { return (Narrow)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#else
INLINE Single at_least(Single floor, Single x) { return floor > x ? floor : x; }
INLINE Single at_most(Single roof, Single x) { return roof < x ? roof : x; }
INLINE Word zero_extended(Narrow x) { return __builtin_convertvector(x, Word); }
INLINE Narrow low_half(Word x) { return __builtin_convertvector(x, Narrow); }

// A multiplication adds 112 to the exponent and also normalises subnormal numbers.
INLINE Single from_half(Narrow x) {
  const Word half = zero_extended(x), sign = (half & 0x8000u) << 16;
  const Single magnitude = (Single)((half & 0x7fffu) << 13) * 0x1p112f;
  const Word beyond = (Word)(magnitude >= 65536.f) & 0x7f800000u;  // infinities and NaN
  return (Single)((Word)magnitude | beyond | sign);
}

// Rounds to nearest even. Adding 0.5 rounds subnormal numbers of half: their last place is that of a float from 0.5
// to 1.
INLINE Narrow to_half(Single x) {
  const Word sign = (Word)x & 0x80000000u, bits = (Word)x ^ sign;
  const Word subnormal = (Word)((Single)bits + 0.5f) - 0x3f000000u;
  const Word normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  const Word finite = bits < 0x38800000u ? subnormal : normal;
  const Word beyond = x == x ? Word{} + 0x7c00u : Word{} + 0x7e00u;
  return low_half((bits >= 0x477ff000u ? beyond : finite) | (sign >> 16));
}
#endif

// Non-temporal stores, for results that are too large for the cache. `to` is aligned to the register.
#if UDSKD_X86 && UDSKD_VECTOR_BYTES == 64 && !defined(__SANITIZE_ADDRESS__)
INLINE void stream(float* to, Single x) { _mm512_stream_ps(to, (__m512)x); }
INLINE void stream(uint16_t* to, Narrow x) { _mm256_stream_si256((__m256i*)to, (__m256i)x); }
INLINE void streamed() { _mm_sfence(); }
#elif UDSKD_X86 && UDSKD_VECTOR_BYTES == 32 && !defined(__SANITIZE_ADDRESS__)
INLINE void stream(float* to, Single x) { _mm256_stream_ps(to, (__m256)x); }
INLINE void stream(uint16_t* to, Narrow x) { _mm_stream_si128((__m128i*)to, (__m128i)x); }
INLINE void streamed() { _mm_sfence(); }
#else  // AddressSanitizer does not check non-temporal stores
INLINE void stream(float* to, Single x) { __builtin_memcpy(to, &x, sizeof x); }
INLINE void stream(uint16_t* to, Narrow x) { __builtin_memcpy(to, &x, sizeof x); }
INLINE void streamed() {}
#endif

INLINE Double at_least(Double floor, Double x) { return floor > x ? floor : x; }
INLINE Double at_most(Double roof, Double x) { return roof < x ? roof : x; }

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
