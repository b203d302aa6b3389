// What stands between the operators, which know tensors, and the kernels, which are compiled without PyTorch's headers.
#pragma once

#include "../../common/cuda/cuda_host.h"
#include "../plan.h"
#include "job.h"

namespace udskd::cuda {

// The stream and the device that a call runs on, and memory for as long as it lasts.
class Call {
 public:
  virtual ~Call() = default;
  virtual void* memory(int64_t bytes) = 0;
  virtual void check(const char* kernel) = 0;  // what became of the launch
  int device = 0;
  Device limits;
  cudaStream_t stream = nullptr;
};

// The float kernels, for networks of one format. All of them check their launches.
void launch_rows(Format format, const Plan& plan, Job& job, Call& call);
void launch_gradients(Format format, Job& job, Call& call);

// Any dtypes, any terms; double where the problem is wide.
void launch_careful_rows(Job& job, Call& call);
void launch_careful_gradients(Job& job, Call& call);
// Adds the rows that count to *job.live.
void launch_count(const Job& job, Call& call);
void launch_scale(const ScaleJob& job, bool wide, Call& call);

}  // namespace udskd::cuda
