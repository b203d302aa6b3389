// The emulated device, its limits, and CUDA's functions for the host.
#pragma once

#include "thread.h"

namespace emu {

struct Device {
  int sms = 4, capability = 90, shared = 232448, l2 = 50 << 20;
};
Device& device();

// The error that CUDA returns for such a launch.
cudaError_t check(const void* kernel, const Launch& launch);
// Stores the error for cudaGetLastError(), and returns it.
cudaError_t failed(cudaError_t error);

// Whether operations are recorded instead of run. Their memory must then stay allocated, like that of a CUDA graph.
bool is_recording();

// Runs or records a memset, in the order of the stream.
void submit_memset(void* to, int value, size_t bytes);

}  // namespace emu

// The overloads of cuda_runtime.h, which only nvcc can compile.
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(P...), int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}
