// What kernels and their launchers need of CUDA. With UDSKD_EMULATE the same sources are compiled as C++ and run on the
// CPU by the tests' emulator (tests/emulator), which has a plain version of everything here.
#pragma once

#ifdef UDSKD_EMULATE

#include "emulator.h"

namespace udskd::cuda {

template <class Kernel>
int most_clusters(Kernel kernel, int threads, int64_t shared, int group) {
  int blocks = 0, sms = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, size_t(shared));
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
  return blocks * sms < group ? 1 : blocks * sms / group;  // the emulator runs a cluster on as few as it has
}

}  // namespace udskd::cuda

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The block's dynamic shared memory: the only one that the kernels use, so that blocks of a cluster find each other's.
#define UDSKD_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// kernel: in parentheses if it has commas. The rest are its arguments.
#define UDSKD_LAUNCH(kernel, grid, block, shared, stream, ...) (kernel)<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define UDSKD_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared, stream, ...)                                   \
  udskd::cuda::launch_together(kernel, cudaLaunchAttributeClusterDimension, cluster, grid, block, shared, stream, \
                               __VA_ARGS__)
// All blocks run at the same time, so that groups of `group` of them can wait for each other.
#define UDSKD_LAUNCH_COOPERATIVE(kernel, group, grid, block, shared, stream, ...) \
  udskd::cuda::launch_together(kernel, cudaLaunchAttributeCooperative, 1, grid, block, shared, stream, __VA_ARGS__)

namespace udskd::cuda {

template <class... Arguments>
void launch_together(void (*kernel)(Arguments...), cudaLaunchAttributeID what, unsigned value, unsigned grid,
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
  cudaLaunchKernelEx(&config, kernel, arguments...);  // an error is found by the check after it
}

template <class... Arguments>
int most_clusters(void (*kernel)(Arguments...), int threads, int64_t shared, int group) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(group), attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = unsigned(group), config.blockDim = unsigned(threads), config.dynamicSmemBytes = size_t(shared);
  config.attrs = &attribute, config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // forgets it: the next check is of another call
  return 0;
}

}  // namespace udskd::cuda

#endif

namespace udskd::cuda {

// 2^x within two units in the last place, in one instruction; 0 below 2^-126.
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

// x, of which the compiler does not know that it is x: so that it computes again rather than keep what no register is
// left for.
__device__ inline float again(float x) {
#ifndef UDSKD_EMULATE
  asm volatile("" : "+f"(x));
#endif
  return x;
}

}  // namespace udskd::cuda
