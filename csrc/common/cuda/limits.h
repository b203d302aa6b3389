// The properties of a GPU that decide how kernels are launched. Plain C++, for machines without CUDA.
#pragma once

#include <cstdint>

namespace udskd::cuda {

// By default an H100.
struct Device {
  int sms = 132, capability = 90;             // streaming multiprocessors, compute capability (90: 9.0)
  int64_t shared = 227 << 10, l2 = 50 << 20;  // bytes: the most shared memory of a block, the L2 cache
};

}  // namespace udskd::cuda
