// The parameters of the CPU kernels that cast, mix and normalise a line of pixels.
#pragma once

#include <cstdint>

namespace udskd {

constexpr int64_t kMirrorSlack = 16;  // bytes beyond the line that mirroring may write

struct NormalizeParams {
  const uint8_t* pixels;         // red, green, blue, red, ...
  const uint8_t* partner;        // the pixels that they are mixed with, or null
  float weight;                  // of `pixels` in the mixture
  int64_t values;                // three for each pixel
  const float *factor, *offset;  // of the three channels, repeated to fill three of the widest registers
  float* out;
};

// The functions of one SIMD level. `planes` are `plane` numbers apart.
struct NormalizeLevel {
  void (*mirror)(const uint8_t* from, int64_t pixels, uint8_t* to);
  void (*normalize)(const NormalizeParams&);
  void (*split)(const float* from, int64_t pixels, float* planes, int64_t plane);
};

// Defined in kernels_baseline.cpp, kernels_avx2.cpp and kernels_avx512.cpp, on x86 alone.
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
