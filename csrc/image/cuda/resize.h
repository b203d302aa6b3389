#pragma once

#include "../../common/cuda/cuda_host.h"
#include "tables.h"

namespace udskd::cuda {

// One kernel, on a stream of the current device. Errors are left for cudaGetLastError().
void launch_resize(const Views& views, cudaStream_t stream);

}  // namespace udskd::cuda
