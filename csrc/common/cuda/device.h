// The device of a tensor: its guard, its current stream, its limits, and the check after a launch.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <deque>
#include <mutex>

#include "cuda_host.h"
#include "limits.h"

namespace udskd::cuda {

// The compute capability that the kernels are compiled for. It is lower than the device's where the device runs PTX.
int compiled_capability();

inline Device query_device(int index) {
  const auto query = [&](cudaDeviceAttr what) {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, what, index);
    STD_TORCH_CHECK(error == cudaSuccess, "cannot query CUDA device ", index, ": ", cudaGetErrorString(error));
    return value;
  };
  return {query(cudaDevAttrMultiProcessorCount),
          std::min(query(cudaDevAttrComputeCapabilityMajor) * 10 + query(cudaDevAttrComputeCapabilityMinor),
                   compiled_capability()),
          query(cudaDevAttrMaxSharedMemoryPerBlockOptin), query(cudaDevAttrL2CacheSize)};
}

#ifdef UDSKD_EMULATE

// Tensors are on the CPU, and tests change the device.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor&) {}
  int index() const { return 0; }
  cudaStream_t stream() const { return nullptr; }
  Device limits() const { return query_device(0); }
  // A CUDA graph needs its memory at every replay.
  static void keep_for_replay(const torch::stable::Tensor& x) {
    static std::deque<torch::stable::Tensor> kept;
    if (emu::is_recording()) kept.push_back(x);
  }

#else

// The current stream of PyTorch. It is looked up at run time, since a library that is linked to libtorch_cuda.so would
// not load with a CPU-only PyTorch. It is looked up in that library alone: Python does not make the symbols of the
// libraries that it loads global.
inline cudaStream_t current_stream(int32_t device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get_stream && get_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "cannot get the current stream of CUDA device ", device);
  return static_cast<cudaStream_t>(stream);
}

// Makes the device of a tensor current during its own lifetime, and holds the device's current stream.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& x)
      : device_(x.get_device_index()), guard_(device_), stream_(current_stream(device_)) {}
  int index() const { return device_; }
  cudaStream_t stream() const { return stream_; }
  static void keep_for_replay(const torch::stable::Tensor&) {}  // PyTorch's allocator keeps the memory of graphs
  // Queried once for each device, since a query takes microseconds.
  Device limits() const {
    static std::array<std::once_flag, 64> queried;
    static std::array<Device, 64> known;
    const size_t slot = size_t(device_) % known.size();
    std::call_once(queried[slot], [&] { known[slot] = query_device(device_); });
    return known[slot];
  }

#endif

  void check(const char* kernel, int64_t rows, int64_t classes) const {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(
        error == cudaSuccess, "udskd ", kernel, " on [", rows, ", ", classes, "], CUDA device ", index(), ": ",
        cudaGetErrorString(error),
        error == cudaErrorNoKernelImageForDevice ? "; `python -m udskd` lists the architectures of this build" : "");
  }

#ifndef UDSKD_EMULATE

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
#endif
};

}  // namespace udskd::cuda
