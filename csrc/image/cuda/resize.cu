// Resizes views of images on CUDA, with a thread for each pixel of the result.
//
// Each thread computes all pixels of the first pass that it needs, and shares none with its neighbours. Where an image
// is made smaller, that is at most twice the work, and the bytes come from the cache.
#include "../../common/cuda/cuda.h"
#include "../taps.h"
#include "resize.h"

namespace udskd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kMaxImages = 65535;  // the limit of a grid in y

// The taps of one pixel along an axis. `begin`, `step`: bytes to the first tap, and from tap to tap.
struct Taps {
  int64_t begin;
  int32_t step, count;
  const int32_t* weights;
};

__device__ inline Taps taps_of(const int32_t* axis, int size, int capacity, int at, int32_t step) {
  return {int64_t(axis[at]) * step, step, axis[size + at], axis + 2 * size + int64_t(at) * capacity};
}

struct Colour {
  int32_t red, green, blue;
};

__device__ inline int32_t rounded(int32_t sum) { return min(sum >> kWeightBits, 255); }
__device__ inline void add(Colour& sum, const Colour& x, int32_t weight) {
  sum.red += x.red * weight, sum.green += x.green * weight, sum.blue += x.blue * weight;
}

// The weighted sum of next(first byte of the tap) over the taps, rounded as by Pillow.
template <class Next>
__device__ Colour blend(const Taps& taps, int64_t from, Next next) {
  constexpr int32_t kHalf = 1 << (kWeightBits - 1);
  Colour sum{kHalf, kHalf, kHalf};
  from += taps.begin;
  for (int k = 0; k < taps.count; ++k, from += taps.step) add(sum, next(from), taps.weights[k]);
  return {rounded(sum.red), rounded(sum.green), rounded(sum.blue)};
}

// A pixel of the result. `first` is the axis that is resized first.
__device__ inline Colour pixel_of(const uint8_t* image, const Taps& first, const Taps& then) {
  return blend(then, 0, [&](int64_t line) {
    return blend(first, line, [&](int64_t at) { return Colour{image[at], image[at + 1], image[at + 2]}; });
  });
}

__global__ void __launch_bounds__(kThreads) resize_views(DeviceViews v) {
  const int at = int(blockIdx.x * blockDim.x + threadIdx.x), size = v.size;
  if (at >= size * size) return;
  for (int image = int(blockIdx.y); image < v.images; image += int(gridDim.y)) {
    const ViewTable& t = v.tables[image];
    const int64_t offset = v.offsets[image];
    Colour colour{0, 0, 0};  // for an image whose offset is wrong
    if (offset >= 0 && offset <= v.bytes - t.needed) {
      const int32_t *across = v.taps + t.begin, *down = across + int64_t(size) * (2 + t.capacity_x);
      const Taps x = taps_of(across, size, t.capacity_x, at % size, 3);
      const Taps y = taps_of(down, size, t.capacity_y, at / size, t.stride);
      const uint8_t* const box = v.pixels + offset + t.box;
      colour = t.columns_first ? pixel_of(box, y, x) : pixel_of(box, x, y);
    }
    uint8_t* const to = v.out + (int64_t(image) * size * size + at) * 3;
    to[0] = uint8_t(colour.red), to[1] = uint8_t(colour.green), to[2] = uint8_t(colour.blue);
  }
}

}  // namespace

void launch_resize(const DeviceViews& views, cudaStream_t stream) {
  const unsigned pixels = unsigned(views.size) * unsigned(views.size);
  const unsigned images = unsigned(views.images) < kMaxImages ? unsigned(views.images) : kMaxImages;
  UDSKD_LAUNCH(resize_views, dim3((pixels + kThreads - 1) / kThreads, images), kThreads, 0, stream, views);
}

}  // namespace udskd::cuda
