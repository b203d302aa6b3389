// What the kernel is told of each image: made on the host, where the shares are computed as on the CPU, so that the
// kernel's arithmetic is of integers alone.
#pragma once

#include <cstdint>

namespace udskd::cuda {

// Of one image; its taps are in `taps`, from [begin] on: for x, then for y, the window's `size` first pixels, their
// numbers of taps, and `room` shares for each.
struct Table {
  int64_t begin, needed, box;  // needed: bytes of the image; box: byte of it at which its box begins
  int32_t stride, room_x, room_y, columns_first;
};

struct Views {
  const uint8_t* pixels;
  int64_t bytes;
  const int64_t* offsets;
  const Table* tables;
  const int32_t* taps;
  uint8_t* out;
  int32_t images, size;
};

}  // namespace udskd::cuda
