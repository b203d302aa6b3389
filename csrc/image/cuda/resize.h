// The launch of the kernel that resizes views of images.
#pragma once

#include "../../common/cuda/cuda_host.h"
#include "tables.h"

namespace udskd::cuda {

// Launches the kernel on a stream of the current device. cudaGetLastError() returns its error.
void launch_resize(const DeviceViews& views, cudaStream_t stream);

}  // namespace udskd::cuda
