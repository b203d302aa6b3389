// The SIMD levels that the CPU kernels are compiled for, and the level in use. Includes no header of PyTorch.
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
bool simd_supported(int level);  // compiled, and the processor has the instructions

// The best supported level, or the level that the environment variable UDSKD_SIMD names. The variable is read once.
int simd_level();

// Why UDSKD_SIMD is ignored, or an empty string.
const char* simd_problem();

}  // namespace udskd
