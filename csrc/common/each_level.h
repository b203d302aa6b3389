// Compiles the file that LEVEL names once for every SIMD level, each in a namespace of its own with vectors of REGISTER
// bytes: baseline, and on x86 avx2 and avx512, of which simd_level() says at run time what the processor has. Included,
// like the file, within a namespace, and hence without a guard. LEVEL's path is seen from this folder.
#define REGISTER 16
namespace baseline {
#include LEVEL
}
#undef REGISTER

#if UDSKD_X86
#define REGISTER 32
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include LEVEL
}
#undef REGISTER
#define REGISTER 64
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace avx512 {
#include LEVEL
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef REGISTER
#endif
#undef LEVEL
