// One view as the CPU's kernels are given it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace udskd {

// taps.h: of one axis, for each of the window's pixels.
struct Axis {
  int64_t most;  // taps of a pixel; `shares` has so many for each
  const int32_t *first, *count, *shares;

  // The source's pixels from the first to behind the last that any of n pixels is made of.
  int64_t begin() const { return first[0]; }
  int64_t end(int64_t n) const { return int64_t(first[n - 1]) + count[n - 1]; }
};

struct ResizeParams {
  const uint8_t* box;  // its first pixel
  int64_t stride;      // bytes from row to row
  const uint8_t* end;  // of the memory that may be read
  int64_t size;        // of the window
  Axis x, y;
  bool columns_first;
  uint8_t* out;
};

// Of more taps a level's scratch would be large; of very many, sums may round to 256, which the levels do not expect.
constexpr int64_t kMostTaps = 1024;

// What a SIMD level has: the scratch that a job needs, aligned to 64 bytes, and its work.
struct ResizeLevel {
  size_t (*scratch_bytes)(const ResizeParams&);
  void (*resize)(const ResizeParams&, void* scratch);
};

// Each is in a source file of its own, kernels_LEVEL.cpp. Other processors than x86 have none.
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
