// The device that is emulated, its limits, and CUDA's functions for the host.
#pragma once

#include "thread.h"

namespace emu {

struct Device {
  int sms = 4, capability = 90, shared = 232448, l2 = 50 << 20;
};
Device& device();

// What CUDA would answer to such a launch.
cudaError_t check(const void* kernel, const Launch& launch);
// Leaves it for cudaGetLastError(), and returns it.
cudaError_t failed(cudaError_t error);

// Whether what is submitted is recorded rather than run: its memory has to stay, as that of a CUDA graph does.
bool recording_now();

// A memset, in the stream's order.
void submit_memset(void* to, int value, size_t bytes);

}  // namespace emu

// Those of cuda_runtime.h, which only nvcc can read.
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(P...), int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}
