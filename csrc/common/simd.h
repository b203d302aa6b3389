// The SIMD levels that the CPU kernels are compiled for, side by side, and the one in use. No PyTorch headers.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define UDSKD_X86 1
#else
#define UDSKD_X86 0
#endif

namespace udskd {

enum SimdLevel : int { kBaseline, kAvx2, kAvx512, kSimdLevels };

const char* simd_name(int level);
bool simd_compiled(int level);
bool simd_supported(int level);  // compiled, and this processor has the instructions

// The best supported level, unless the environment variable UDSKD_SIMD names another. Read once.
int simd_level();

// Empty, or why UDSKD_SIMD could not be obeyed.
const char* simd_problem();

}  // namespace udskd
