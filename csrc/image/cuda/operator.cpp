// The operator crop_resize on CUDA: checks, the filter taps, and the launch.
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../../common/cuda/device.h"
#include "../../common/registration.h"
#include "../../common/tensor.h"
#include "../taps.h"
#include "../view.h"
#include "resize.h"

namespace udskd::cuda {
namespace {

constexpr int64_t kMaxSize = 16384;  // of the window: its pixels are counted in 32 bits

struct Layout {
  std::vector<ViewTable> tables;
  int64_t taps;  // numbers for all images
};

Layout lay_out(const Batch& batch) {
  Layout layout{{}, 0};
  layout.tables.reserve(size_t(batch.images));
  for (int64_t row = 0; row < batch.images; ++row) {
    const View& v = batch.views[row];
    const Shape& shape = batch.shapes[row];
    const int64_t width = v.right - v.left, height = v.bottom - v.top, stride = 3 * shape.width;
    const int64_t capacity_x = tap_capacity(width, v.width), capacity_y = tap_capacity(height, v.height);
    layout.tables.push_back({layout.taps, shape.height * stride, v.top * stride + 3 * v.left, int32_t(stride),
                             int32_t(capacity_x), int32_t(capacity_y),
                             columns_first(width, height, v.width, v.height)});
    layout.taps += batch.size * (4 + capacity_x + capacity_y);
  }
  return layout;
}

void find_axis(int64_t from, int64_t to, int64_t begin, int64_t n, int64_t capacity, int32_t* axis) {
  find_taps(from, to, begin, n, capacity, axis, axis + n, axis + 2 * n);
}

void write_tables(const Batch& batch, const Layout& layout, ViewTable* tables, int32_t* taps) {
  std::copy(layout.tables.begin(), layout.tables.end(), tables);
  torch::stable::parallel_for(0, batch.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const View& v = batch.views[row];
      const ViewTable& t = layout.tables[size_t(row)];
      int32_t* const across = taps + t.begin;
      find_axis(v.right - v.left, v.width, v.x, batch.size, t.capacity_x, across);
      find_axis(v.bottom - v.top, v.height, v.y, batch.size, t.capacity_y, across + batch.size * (2 + t.capacity_x));
    }
  });
}

#ifdef UDSKD_EMULATE
Tensor host_memory(const Tensor& like, int64_t words) { return empty_like(like, {words}, ScalarType::Double); }
Tensor on_device(const Tensor& host, const Tensor&) { return host; }
void refuse_capture(const DeviceScope&) {}
#else
void refuse_capture(const DeviceScope& on) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(on.stream(), &status);
  STD_TORCH_CHECK(error == cudaSuccess, "crop_resize: ", cudaGetErrorString(error));
  STD_TORCH_CHECK(status == cudaStreamCaptureStatusNone,
                  "crop_resize: it cannot be part of a CUDA graph, because the host reads the views");
}
// Page-locked memory from PyTorch's cache, which does not reuse it before the copy has ended.
Tensor host_memory(const Tensor&, int64_t words) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::empty({words}, ScalarType::Double, std::nullopt, cpu, true);
}
Tensor on_device(const Tensor& host, const Tensor& like) {
  Tensor device = empty_like(like, {host.size(0)}, ScalarType::Double);
  torch::stable::copy_(device, host, true);
  return device;
}
#endif

void crop_resize(Tensor pixels, Tensor offsets, Tensor shapes, Tensor views, Tensor out) {
  const Batch batch = read_batch(pixels, offsets, shapes, views, out);
  STD_TORCH_CHECK(batch.size <= kMaxSize && batch.images <= INT32_MAX, "crop_resize: out is larger than ", kMaxSize,
                  " pixels a side");
  if (batch.size == 0 || batch.images == 0) return;
  const DeviceScope on(pixels);
  refuse_capture(on);
  const Layout layout = lay_out(batch);
  const int64_t bytes_of_tables = batch.images * int64_t(sizeof(ViewTable));
  const Tensor host = host_memory(pixels, (bytes_of_tables + layout.taps * 4 + 7) / 8);
  auto* const memory = static_cast<uint8_t*>(host.mutable_data_ptr());
  write_tables(batch, layout, reinterpret_cast<ViewTable*>(memory),
               reinterpret_cast<int32_t*>(memory + bytes_of_tables));
  const Tensor device = on_device(host, pixels);
  DeviceScope::keep_for_replay(device);
  const auto* const there = static_cast<const uint8_t*>(device.const_data_ptr());
  launch_resize({batch.pixels, batch.bytes, batch.offsets, reinterpret_cast<const ViewTable*>(there),
                 reinterpret_cast<const int32_t*>(there + bytes_of_tables), batch.out, int32_t(batch.images),
                 int32_t(batch.size)},
                on.stream());
  on.check("crop_resize", batch.images, batch.size);
}

}  // namespace
}  // namespace udskd::cuda

UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(CUDA), m) {
  m.impl("crop_resize", TORCH_BOX(&udskd::cuda::crop_resize));
}
