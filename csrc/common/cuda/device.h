// A tensor's device: its guard, its current stream, its limits, and what became of a launch on it.
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

// The compute capability that the kernels were compiled for: less than the device's where it runs their PTX.
int compiled_for();

inline Device ask_device(int index) {
  const auto ask = [&](cudaDeviceAttr what) {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, what, index);
    STD_TORCH_CHECK(error == cudaSuccess, "CUDA device ", index, " does not answer: ", cudaGetErrorString(error));
    return value;
  };
  return {
      ask(cudaDevAttrMultiProcessorCount),
      std::min(ask(cudaDevAttrComputeCapabilityMajor) * 10 + ask(cudaDevAttrComputeCapabilityMinor), compiled_for()),
      ask(cudaDevAttrMaxSharedMemoryPerBlockOptin), ask(cudaDevAttrL2CacheSize)};
}

#ifdef UDSKD_EMULATE

// The tensors are the CPU's, and the device changes between tests.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor&) {}
  int index() const { return 0; }
  cudaStream_t stream() const { return nullptr; }
  Device limits() const { return ask_device(0); }
  // A graph's memory is the graph's for as long as it is replayed.
  static void keep(const torch::stable::Tensor& x) {
    static std::deque<torch::stable::Tensor> kept;
    if (emu::recording_now()) kept.push_back(x);
  }

#else

// PyTorch's own, of a library that this one is not linked to, so that it also loads beside a CPU-only PyTorch. Python
// loads libraries for themselves alone: the name is found only where it is defined.
inline cudaStream_t current_stream(int32_t device) {
  using Ask = AOTITorchError (*)(int32_t, void**);
  static const Ask ask = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Ask>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(ask && ask(device, &stream) == AOTI_TORCH_SUCCESS, "cannot get the current stream of CUDA device ",
                  device);
  return static_cast<cudaStream_t>(stream);
}

// Makes the device current for as long as it lives, and holds its current stream.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& x)
      : device_(x.get_device_index()), guard_(device_), stream_(current_stream(device_)) {}
  int index() const { return device_; }
  cudaStream_t stream() const { return stream_; }
  static void keep(const torch::stable::Tensor&) {}  // the allocator sees to it
  // Asked once for each device: it takes microseconds.
  Device limits() const {
    static std::array<std::once_flag, 64> asked;
    static std::array<Device, 64> known;
    const size_t slot = size_t(device_) % known.size();
    std::call_once(asked[slot], [&] { known[slot] = ask_device(device_); });
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
