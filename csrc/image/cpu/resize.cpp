// The operators crop_resize and crop_resize_one on the CPU: checks, the choice of the SIMD level, the threads, and a
// scalar version for views that the kernels do not take.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../../common/registration.h"
#include "../../common/scratch.h"
#include "../../common/simd.h"
#include "../../common/tensor.h"
#include "../taps.h"
#include "../view.h"
#include "resize_params.h"

namespace udskd {
namespace {

constexpr size_t kKept = 4 << 20;  // bytes of scratch that a thread keeps from call to call

// One byte of the result: the weighted sum of its taps, which are `step` bytes apart.
uint8_t blend(const uint8_t* from, int64_t step, int64_t count, const int32_t* weights) {
  int32_t sum = 1 << (kWeightBits - 1);
  for (int64_t k = 0; k < count; ++k) sum += from[k * step] * weights[k];
  return uint8_t(std::min(sum >> kWeightBits, 255));
}

// Distances in bytes: `step` from pixel to pixel along the axis, `next` from line to line.
struct Steps {
  int64_t step, next;
};

// Resizes along one axis: n pixels of each of `lines` lines.
void resize_axis(const Axis& axis, int64_t n, int64_t lines, const uint8_t* from, Steps source, uint8_t* to,
                 Steps result) {
  for (int64_t line = 0; line < lines; ++line)
    for (int64_t i = 0; i < 3 * n; ++i) {
      const int64_t at = i / 3, channel = i % 3;
      to[line * result.next + at * result.step + channel] =
          blend(from + line * source.next + (axis.first[at] - axis.begin()) * source.step + channel, source.step,
                axis.count[at], axis.weights + at * axis.max_taps);
    }
}

// For processors other than x86, and for more than kMaxTaps taps.
void resize_scalar(const ResizeParams& params) {
  const int64_t n = params.size, columns = params.x.end(n) - params.x.begin(),
                rows = params.y.end(n) - params.y.begin();
  const uint8_t* const from = params.box + params.y.begin() * params.stride + 3 * params.x.begin();
  std::vector<uint8_t> between(size_t(3 * n * (params.columns_first ? columns : rows)));
  if (params.columns_first) {
    resize_axis(params.y, n, columns, from, {params.stride, 3}, between.data(), {3 * columns, 3});
    resize_axis(params.x, n, n, between.data(), {3, 3 * columns}, params.out, {3, 3 * n});
  } else {
    resize_axis(params.x, n, rows, from, {3, params.stride}, between.data(), {3, 3 * n});
    resize_axis(params.y, n, n, between.data(), {3 * n, 3}, params.out, {3 * n, 3});
  }
}

void resize(const ResizeParams& params) {
#if UDSKD_X86
  const ResizeLevel& level = simd_level() == kAvx512 ? avx512::kResizeLevel
                             : simd_level() == kAvx2 ? avx2::kResizeLevel
                                                     : baseline::kResizeLevel;
  if (std::max(params.x.max_taps, params.y.max_taps) <= kMaxTaps)
    return with_scratch<kKept>(level.scratch_bytes(params), [&](void* scratch) { level.resize(params, scratch); });
#endif
  resize_scalar(params);
}

// Finds the taps of an axis, in memory that is kept from call to call.
class TapBuffer {
 public:
  Axis find(int64_t from, int64_t to, int64_t begin, int64_t n) {
    const int64_t capacity = tap_capacity(from, to);
    if (int64_t(memory_.size()) < n * (capacity + 2)) memory_.resize(size_t(n * (capacity + 2)));
    int32_t *first = memory_.data(), *count = first + n, *weights = count + n;
    const int64_t most = find_taps(from, to, begin, n, capacity, first, count, weights);
    for (int64_t i = 1; i < n && most < capacity; ++i)  // without the gaps
      std::copy(weights + i * capacity, weights + i * capacity + most, weights + i * most);
    return {most, first, count, weights};
  }
  void trim() {
    if (memory_.size() > 1 << 20) memory_ = {};
  }

 private:
  std::vector<int32_t> memory_;
};

void resize_view(const uint8_t* pixels, const uint8_t* end, const Shape& shape, const View& v, int64_t size,
                 uint8_t* out) {
  const int64_t width = v.right - v.left, height = v.bottom - v.top, stride = 3 * shape.width;
  const uint8_t* const box = pixels + v.top * stride + 3 * v.left;
  if (width == v.width && height == v.height) {
    for (int64_t y = 0; y < size; ++y) std::copy_n(box + (v.y + y) * stride + 3 * v.x, 3 * size, out + y * 3 * size);
    return;
  }
  thread_local TapBuffer across, down;
  resize({box, stride, end, size, across.find(width, v.width, v.x, size), down.find(height, v.height, v.y, size),
          columns_first(width, height, v.width, v.height), out});
  across.trim(), down.trim();
}

void crop_resize(Tensor pixels, Tensor offsets, Tensor shapes, Tensor views, Tensor out) {
  const Batch batch = read_batch(pixels, offsets, shapes, views, out);
  for (int64_t row = 0; row < batch.images; ++row) {
    const int64_t offset = batch.offsets[row], needed = batch.shapes[row].height * batch.shapes[row].width * 3;
    STD_TORCH_CHECK(offset >= 0 && offset <= batch.bytes - needed, "crop_resize: image ", row, " of ", needed,
                    " bytes at offset ", offset, " is not within the ", batch.bytes, " bytes of pixels");
  }
  if (batch.size == 0) return;
  torch::stable::parallel_for(0, batch.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      resize_view(batch.pixels + batch.offsets[row], batch.pixels + batch.bytes, batch.shapes[row], batch.views[row],
                  batch.size, batch.out + row * batch.size * batch.size * 3);
  });
}

void crop_resize_one(Tensor pixels, int64_t left, int64_t top, int64_t right, int64_t bottom, int64_t width,
                     int64_t height, int64_t x, int64_t y, Tensor out) {
  check_given("crop_resize: pixels", pixels), check_out(out, 3, "[size, size, 3]");
  STD_TORCH_CHECK(
      pixels.scalar_type() == ScalarType::Byte && pixels.dim() == 3 && pixels.size(2) == 3 && pixels.is_contiguous(),
      "crop_resize: pixels must be contiguous uint8 [height, width, 3]");
  check_storage("crop_resize: pixels", pixels);
  const Shape shape{pixels.size(0), pixels.size(1)};
  const View view{left, top, right, bottom, width, height, x, y};
  check_view(view, shape, out.size(0), 0);
  if (out.size(0) == 0) return;
  const uint8_t* const from = pixels.const_data_ptr<uint8_t>();
  resize_view(from, from + pixels.numel(), shape, view, out.size(0), out.mutable_data_ptr<uint8_t>());
}

}  // namespace
}  // namespace udskd

UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(CPU), m) {
  m.impl("crop_resize", TORCH_BOX(&udskd::crop_resize));
  m.impl("crop_resize_one", TORCH_BOX(&udskd::crop_resize_one));
}
