// A line of pixels cast, mixed and normalised: what a SIMD level is given, and the arithmetic, number by number.
#pragma once

#include <cstdint>

namespace udskd {

constexpr int64_t kMirrorSlack = 16;  // bytes that mirroring may write beyond its line

struct NormalizeParams {
  const uint8_t* pixels;         // red, green, blue, red ...
  const uint8_t* partner;        // what they are mixed with, or null
  float share;                   // of the pixels in the mixture
  int64_t values;                // three a pixel
  const float *factor, *offset;  // of three channels, again and again for three of the widest registers
  float* out;
};

// What a SIMD level has. `mirror` and `split` are told the number of pixels; `planes` are `plane` numbers apart.
struct NormalizeLevel {
  void (*mirror)(const uint8_t* from, int64_t pixels, uint8_t* to);
  void (*normalize)(const NormalizeParams&);
  void (*split)(const float* from, int64_t pixels, float* planes, int64_t plane);
};

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
