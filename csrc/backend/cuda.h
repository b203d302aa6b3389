// What every CUDA launcher needs: the current stream, the device guard, and a launch that says what failed.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

// Lives in libtorch_cuda; weak, so that this library also loads beside a CPU-only PyTorch.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace udskd {

// Makes a tensor's device current for as long as it lives, and holds that device's current stream.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& x) : device_(x.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream &&
                        aoti_torch_get_current_cuda_stream(device_, &stream) == AOTI_TORCH_SUCCESS,
                    "cannot get the current stream of CUDA device ", device_);
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  void check(const char* kernel, int64_t rows, int64_t classes) const {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(
        error == cudaSuccess, kernel, " on [", rows, ", ", classes, "], CUDA device ", device_, ": ",
        cudaGetErrorString(error),
        error == cudaErrorNoKernelImageForDevice ? "; `python -m udskd` lists the architectures of this build" : "");
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace udskd
