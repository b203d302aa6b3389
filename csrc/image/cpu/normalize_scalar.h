// Normalises and mirrors a line of pixels without vectors: the end of a line that fills no register, or all of it on
// processors other than x86.
#pragma once

#include <cstdint>

#include "normalize_params.h"

// Code between these macros fuses no multiplication with an addition, so that each step is rounded as PyTorch's
// separate operators round it (udskd/data/normalize.py) and all levels give the same bits.
#ifdef __clang__
#define UDSKD_SEPARATE_ROUNDING_BEGIN _Pragma("clang fp contract(off)")
#define UDSKD_SEPARATE_ROUNDING_END _Pragma("clang fp contract(on)")
#else
#define UDSKD_SEPARATE_ROUNDING_BEGIN _Pragma("GCC push_options") _Pragma("GCC optimize(\"fp-contract=off\")")
#define UDSKD_SEPARATE_ROUNDING_END _Pragma("GCC pop_options")
#endif

UDSKD_SEPARATE_ROUNDING_BEGIN
namespace udskd {

// Normalises the values from `at` on. A difference of bytes is exact, so that a weight of 1 or 0 gives exactly one of
// the two lines.
inline void normalize_from(int64_t at, const NormalizeParams& line) {
  for (; at < line.values; ++at) {
    float x = float(line.pixels[at]);
    if (line.partner) x = float(line.pixels[at] - line.partner[at]) * line.weight + float(line.partner[at]);
    line.out[at] = x * line.factor[at % 3] + line.offset[at % 3];
  }
}

// Writes the pixels of the mirrored line from `at` on. Copies of four bytes are faster than copies of three; the next
// copy overwrites the fourth byte.
inline void mirror_from(int64_t at, const uint8_t* from, int64_t pixels, uint8_t* to) {
  if (at == 0 && pixels > 0) __builtin_memcpy(to, from + 3 * (pixels - 1), 3), at = 1;
  for (; at < pixels; ++at) __builtin_memcpy(to + 3 * at, from + 3 * (pixels - 1 - at), 4);
}

}  // namespace udskd
UDSKD_SEPARATE_ROUNDING_END
