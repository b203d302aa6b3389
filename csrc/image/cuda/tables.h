// The tables of each image that the kernel reads. The host computes the weights as on the CPU, so that the kernel uses
// integer arithmetic alone.
#pragma once

#include <cstdint>

namespace udskd::cuda {

// One image. Its taps are in `taps` from [begin] on: for x, then for y, the first tap of each of the window's `size`
// pixels, their numbers of taps, and `capacity` weights for each pixel.
struct ViewTable {
  int64_t begin, needed, box;  // needed: bytes of the image; box: offset of the box in the image
  int32_t stride, capacity_x, capacity_y, columns_first;
};

struct DeviceViews {
  const uint8_t* pixels;
  int64_t bytes;
  const int64_t* offsets;
  const ViewTable* tables;
  const int32_t* taps;
  uint8_t* out;
  int32_t images, size;
};

}  // namespace udskd::cuda
