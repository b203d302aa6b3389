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

// Each is in a source file of its own, kernels_LEVEL.cpp. Other processors than x86 have none.
namespace baseline {
extern const NormalizeLevel kNormalizeLevel;
}
namespace avx2 {
extern const NormalizeLevel kNormalizeLevel;
}
namespace avx512 {
extern const NormalizeLevel kNormalizeLevel;
}

}  // namespace udskd
