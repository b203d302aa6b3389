#include "simd.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace udskd {
namespace {

constexpr const char* kNames[kSimdLevels] = {"baseline", "avx2", "avx512"};

struct Choice {
  int level = kBaseline;
  std::string problem;  // why UDSKD_SIMD is ignored
};

Choice choose() {
  Choice choice;
  for (int level = 0; level < kSimdLevels; ++level)
    if (simd_supported(level)) choice.level = level;
  const char* wanted = std::getenv("UDSKD_SIMD");
  if (!wanted || !*wanted) return choice;
  for (int level = 0; level < kSimdLevels; ++level) {
    if (std::strcmp(wanted, kNames[level]) != 0) continue;
    if (simd_supported(level)) return {level, ""};
    choice.problem = std::string("UDSKD_SIMD=") + wanted + ": this processor or build does not have it; using " +
                     kNames[choice.level];
    return choice;
  }
  choice.problem =
      std::string("UDSKD_SIMD=") + wanted + ": use baseline, avx2 or avx512; using " + kNames[choice.level];
  return choice;
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const char* simd_name(int level) { return kNames[level]; }

bool simd_compiled(int level) { return level == kBaseline || UDSKD_X86; }

bool simd_supported(int level) {
#if UDSKD_X86
  __builtin_cpu_init();
  if (level == kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (level == kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && simd_supported(kAvx2);
#endif
  return level == kBaseline;
}

int simd_level() { return choice().level; }

const char* simd_problem() { return choice().problem.c_str(); }

}  // namespace udskd
