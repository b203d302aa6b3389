// The SIMD level that a source file compiles the CPU kernels for. One source file for each level defines
// UDSKD_VECTOR_BYTES, the size of a vector register, as 16 (baseline), 32 (avx2) or 64 (avx512), and includes the
// kernels' headers. simd_level() selects one of them at run time.
//
// A header of the kernels puts its code, but not its includes, between UDSKD_TARGET_BEGIN and UDSKD_TARGET_END, which
// enable the level's instructions, and into an unnamed namespace in the namespace UDSKD_LEVEL. A compiler flag such as
// -mavx2 would also apply to the inline functions of the standard library and of PyTorch. The linker keeps one copy of
// these for all levels, and could keep one that the processor cannot execute.
#pragma once

#include "../simd.h"

#ifndef UDSKD_VECTOR_BYTES
#define UDSKD_VECTOR_BYTES 16
#endif

#define UDSKD_PRAGMA(...) _Pragma(#__VA_ARGS__)
#ifdef __clang__
#define UDSKD_PUSH_TARGET(names) UDSKD_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define UDSKD_POP_TARGET UDSKD_PRAGMA(clang attribute pop)
#define UDSKD_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#else
#define UDSKD_PUSH_TARGET(names) UDSKD_PRAGMA(GCC push_options) UDSKD_PRAGMA(GCC target(names))
#define UDSKD_POP_TARGET UDSKD_PRAGMA(GCC pop_options)
#define UDSKD_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#endif

#if UDSKD_VECTOR_BYTES == 16
#define UDSKD_LEVEL baseline
#define UDSKD_TARGET_BEGIN
#define UDSKD_TARGET_END
#elif UDSKD_VECTOR_BYTES == 32
#define UDSKD_LEVEL avx2
#define UDSKD_TARGET_BEGIN UDSKD_PUSH_TARGET("avx2,fma,f16c")
#define UDSKD_TARGET_END UDSKD_POP_TARGET
#else
#define UDSKD_LEVEL avx512
#define UDSKD_TARGET_BEGIN UDSKD_PUSH_TARGET(UDSKD_AVX512)
#define UDSKD_TARGET_END UDSKD_POP_TARGET
#endif
