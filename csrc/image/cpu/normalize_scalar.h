// Normalises and mirrors a line of pixels number by number: the rest of a line that fills no register, and all of it on
// processors other than x86.
#pragma once

#include <cstdint>

#include "normalize_params.h"

// Between these, multiplications are not fused with additions: each step is rounded as PyTorch's separate operators
// round it, at every level.
#ifdef __clang__
#define UDSKD_SEPARATE_ROUNDING_BEGIN _Pragma("clang fp contract(off)")
#define UDSKD_SEPARATE_ROUNDING_END _Pragma("clang fp contract(on)")
#else
#define UDSKD_SEPARATE_ROUNDING_BEGIN _Pragma("GCC push_options") _Pragma("GCC optimize(\"fp-contract=off\")")
#define UDSKD_SEPARATE_ROUNDING_END _Pragma("GCC pop_options")
#endif

UDSKD_SEPARATE_ROUNDING_BEGIN
namespace udskd {

// The values from `at` on. Each step is rounded: PyTorch's separate operators are the model (udskd/data/normalize.py).
// A difference of bytes is exact, so that a share of 1 or 0 gives the one or the other line itself.
inline void normalize_from(int64_t at, const NormalizeParams& line) {
  for (; at < line.values; ++at) {
    float x = float(line.pixels[at]);
    if (line.partner) x = float(line.pixels[at] - line.partner[at]) * line.share + float(line.partner[at]);
    line.out[at] = x * line.factor[at % 3] + line.offset[at % 3];
  }
}

// The pixels of the result from `at` on. Four bytes are quicker than three; the fourth belongs to the next pixel.
inline void mirror_from(int64_t at, const uint8_t* from, int64_t pixels, uint8_t* to) {
  if (at == 0 && pixels > 0) __builtin_memcpy(to, from + 3 * (pixels - 1), 3), at = 1;
  for (; at < pixels; ++at) __builtin_memcpy(to + 3 * at, from + 3 * (pixels - 1 - at), 4);
}

}  // namespace udskd
UDSKD_SEPARATE_ROUNDING_END
