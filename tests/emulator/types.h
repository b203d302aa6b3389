// CUDA's types, error codes and number formats from its headers, and its keywords as plain C++.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>  // device.cpp defines the functions of it that csrc calls

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __cluster_dims__

#define __global__
#define __device__
#define __host__
#define __constant__
#define __noinline__  // empty, so that __attribute__((__noinline__)) in other headers stays valid
#define __launch_bounds__(...)
#define __grid_constant__
// __forceinline__ is left as CUDA's headers define it for a host compiler.

// Static arrays would neither start with NaN nor have AddressSanitizer's red zones, and a cluster could not map them.
#define __shared__ static_assert(false, "the emulator has no __shared__ variables: use UDSKD_SHARED");
#define __cluster_dims__(...) static_assert(false, "the emulator has no __cluster_dims__: use UDSKD_LAUNCH_CLUSTER");

constexpr int warpSize = 32;
