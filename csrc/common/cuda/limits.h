// What of a GPU decides how kernels are launched on it: plain C++, so that it can be used where there is no CUDA.
#pragma once

#include <cstdint>

namespace udskd::cuda {

// An H100 unless said otherwise.
struct Device {
  int sms = 132, capability = 90;             // 90: 9.0
  int64_t shared = 227 << 10, l2 = 50 << 20;  // bytes of shared memory that a block can have, of the L2 cache
};

}  // namespace udskd::cuda
