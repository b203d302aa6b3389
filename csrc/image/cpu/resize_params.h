// The parameters of the CPU kernels that resize one view.
#pragma once

#include <cstddef>
#include <cstdint>

namespace udskd {

// The filter taps (taps.h) along one axis for each pixel of the window.
struct Axis {
  int64_t max_taps;  // the number of weights of each pixel in `weights`
  const int32_t *first, *count, *weights;

  // The range of the source's pixels that n pixels have taps on.
  int64_t begin() const { return first[0]; }
  int64_t end(int64_t n) const { return int64_t(first[n - 1]) + count[n - 1]; }
};

struct ResizeParams {
  const uint8_t* box;  // the first pixel of the box of the source
  int64_t stride;      // bytes from row to row of the source
  const uint8_t* end;  // the end of the memory that may be read
  int64_t size;        // pixels of the window a side
  Axis x, y;
  bool columns_first;
  uint8_t* out;
};

// The kernels take no more taps than this: their scratch memory would be large, and sums of very many taps can round to
// 256, which the kernels do not clamp.
constexpr int64_t kMaxTaps = 1024;

// The functions of one SIMD level. `scratch` is aligned to 64 bytes.
struct ResizeLevel {
  size_t (*scratch_bytes)(const ResizeParams&);
  void (*resize)(const ResizeParams&, void* scratch);
};

// Defined in kernels_baseline.cpp, kernels_avx2.cpp and kernels_avx512.cpp, on x86 alone.
namespace baseline {
extern const ResizeLevel kResizeLevel;
}
namespace avx2 {
extern const ResizeLevel kResizeLevel;
}
namespace avx512 {
extern const ResizeLevel kResizeLevel;
}

}  // namespace udskd
