// Views of images on CUDA: a thread for each pixel of the result.
//
// It resizes what it needs of the axis that goes first over again, without a word to its neighbours. That is little:
// twice the work at most where an image is made smaller, and the bytes come from the cache.
#include "../../common/cuda/cuda.h"
#include "../taps.h"
#include "resize.h"

namespace udskd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kMostImages = 65535;  // at once: a grid's limit

// One pixel's taps along an axis. `step`: bytes from pixel to pixel.
struct Taps {
  int64_t begin;
  int32_t step, count;
  const int32_t* shares;
};

__device__ inline Taps taps_of(const int32_t* axis, int size, int room, int at, int32_t step) {
  return {int64_t(axis[at]) * step, step, axis[size + at], axis + 2 * size + int64_t(at) * room};
}

struct Colour {
  int32_t red, green, blue;
};

__device__ inline int32_t rounded(int32_t sum) { return min(sum >> kShareBits, 255); }
__device__ inline void add(Colour& sum, const Colour& x, int32_t share) {
  sum.red += x.red * share, sum.green += x.green * share, sum.blue += x.blue * share;
}

// The sum over taps of next(first byte of each), rounded as Pillow rounds it.
template <class Next>
__device__ Colour blend(const Taps& taps, int64_t from, Next next) {
  constexpr int32_t kHalf = 1 << (kShareBits - 1);
  Colour sum{kHalf, kHalf, kHalf};
  from += taps.begin;
  for (int k = 0; k < taps.count; ++k, from += taps.step) add(sum, next(from), taps.shares[k]);
  return {rounded(sum.red), rounded(sum.green), rounded(sum.blue)};
}

// A pixel of the result, of which `first` is the axis that is resized first.
__device__ inline Colour pixel_of(const uint8_t* image, const Taps& first, const Taps& then) {
  return blend(then, 0, [&](int64_t line) {
    return blend(first, line, [&](int64_t at) { return Colour{image[at], image[at + 1], image[at + 2]}; });
  });
}

__global__ void __launch_bounds__(kThreads) resize_views(Views v) {
  const int at = int(blockIdx.x * blockDim.x + threadIdx.x), size = v.size;
  if (at >= size * size) return;
  for (int image = int(blockIdx.y); image < v.images; image += int(gridDim.y)) {
    const Table& t = v.tables[image];
    const int64_t offset = v.offsets[image];
    Colour colour{0, 0, 0};  // of an image that is not there
    if (offset >= 0 && offset <= v.bytes - t.needed) {
      const int32_t *across = v.taps + t.begin, *down = across + int64_t(size) * (2 + t.room_x);
      const Taps x = taps_of(across, size, t.room_x, at % size, 3);
      const Taps y = taps_of(down, size, t.room_y, at / size, t.stride);
      const uint8_t* const box = v.pixels + offset + t.box;
      colour = t.columns_first ? pixel_of(box, y, x) : pixel_of(box, x, y);
    }
    uint8_t* const to = v.out + (int64_t(image) * size * size + at) * 3;
    to[0] = uint8_t(colour.red), to[1] = uint8_t(colour.green), to[2] = uint8_t(colour.blue);
  }
}

}  // namespace

void launch_resize(const Views& views, cudaStream_t stream) {
  const unsigned pixels = unsigned(views.size) * unsigned(views.size);
  const unsigned images = unsigned(views.images) < kMostImages ? unsigned(views.images) : kMostImages;
  UDSKD_LAUNCH(resize_views, dim3((pixels + kThreads - 1) / kThreads, images), kThreads, 0, stream, views);
}

}  // namespace udskd::cuda
