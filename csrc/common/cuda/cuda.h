// CUDA for kernels and the functions that launch them. With UDSKD_EMULATE the same sources are compiled as C++, and the
// emulator of the tests (tests/emulator), which defines everything here, runs them on the CPU.
#pragma once

#ifdef UDSKD_EMULATE

#include "emulator.h"

namespace udskd::cuda {

template <class Kernel>
int max_clusters(Kernel kernel, int threads, int64_t shared, int group) {
  int blocks = 0, sms = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, size_t(shared));
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  return blocks * sms < group ? 1 : blocks * sms / group;  // the emulator runs a cluster on any number of SMs
}

}  // namespace udskd::cuda

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The dynamic shared memory of the block. The kernels use no other, so that its layout is the same in all blocks of a
// cluster.
#define UDSKD_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// `kernel` is in parentheses if it contains commas. The arguments after `stream` are those of the kernel.
#define UDSKD_LAUNCH(kernel, grid, block, shared, stream, ...) (kernel)<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define UDSKD_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared, stream, ...)                                 \
  udskd::cuda::launch_with_attribute(kernel, cudaLaunchAttributeClusterDimension, cluster, grid, block, shared, \
                                     stream, __VA_ARGS__)
// All blocks run at the same time, so that the blocks of each group of `group` blocks can wait for each other.
#define UDSKD_LAUNCH_COOPERATIVE(kernel, group, grid, block, shared, stream, ...)                            \
  udskd::cuda::launch_with_attribute(kernel, cudaLaunchAttributeCooperative, 1, grid, block, shared, stream, \
                                     __VA_ARGS__)

namespace udskd::cuda {

template <class... Arguments>
void launch_with_attribute(void (*kernel)(Arguments...), cudaLaunchAttributeID what, unsigned value, unsigned grid,
                           unsigned block, size_t shared, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = what;
  if (what == cudaLaunchAttributeClusterDimension) {
    attribute.val.clusterDim.x = value, attribute.val.clusterDim.y = 1, attribute.val.clusterDim.z = 1;
  } else {
    attribute.val.cooperative = int(value);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, arguments...);  // DeviceScope::check() reports its error
}

template <class... Arguments>
int max_clusters(void (*kernel)(Arguments...), int threads, int64_t shared, int group) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(group), attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = unsigned(group), config.blockDim = unsigned(threads), config.dynamicSmemBytes = size_t(shared);
  config.attrs = &attribute, config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // clears the error, which the next check would report otherwise
  return 0;
}

}  // namespace udskd::cuda

#endif

namespace udskd::cuda {

// 2^x within two units in the last place, in one instruction. Results below 2^-126 are 0.
__device__ inline float exp2_fast(float x) {
#ifdef UDSKD_EMULATE
  return emu_ex2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 1 / x within a unit in the last place.
__device__ inline float reciprocal(float x) {
#ifdef UDSKD_EMULATE
  return 1 / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Returns x, and hides from the compiler that it does: the compiler then computes values from it a second time, where
// it would otherwise keep the first ones and run out of registers.
__device__ inline float opaque(float x) {
#ifndef UDSKD_EMULATE
  asm volatile("" : "+f"(x));
#endif
  return x;
}

}  // namespace udskd::cuda
