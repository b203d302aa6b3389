// The kernels for everything else: double, networks of different dtypes, teachers that learn, peers that are not
// detached; those that scale gradients and count labels.
#include "gradients.h"
#include "launch.h"
#include "rows.h"
#include "scale.h"

namespace udskd::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) count(const __grid_constant__ Job job) {
  UDSKD_SHARED(shared);
  Block<kThreads> block(GroupStorage{shared});
  const double live = live_labels(job.p, block, int64_t(blockIdx.x) * kThreads, int64_t(gridDim.x) * kThreads);
  if (block.rank() == 0) atomicAdd(job.live, static_cast<unsigned long long>(live));
}

template <class Acc>
void rows_of(Job& job, Call& call) {
  constexpr auto kKernel = careful_rows<Acc>;
  const int at_once = blocks_of_sm<kKernel>(kThreads, kStoreBegin, call);
  const unsigned grid = grid_for(job.p.rows, 1, at_once, call.limits);
  give_memory(job, grid, 0, call);
  UDSKD_LAUNCH(kKernel, grid, kThreads, kStoreBegin, call.stream, job);
  call.check("careful_rows");
}

template <class Acc>
void gradients_of(Job& job, Call& call) {
  constexpr auto kKernel = careful_gradients<Acc>;
  const int at_once = blocks_of_sm<kKernel>(kThreads, kGroupStorageBytes, call);
  UDSKD_LAUNCH(kKernel, grid_for(job.p.rows, 1, at_once, call.limits), kThreads, kGroupStorageBytes, call.stream, job);
  call.check("careful_gradients");
}

template <class Acc>
void scale_of(const ScaleJob& job, Call& call) {
  constexpr int64_t kNumbers =
      kScaleThreads * kScaleAhead * 4;  // of a block, in float: few blocks mostly return at once
  constexpr auto kKernel = scale<Acc>;
  const int64_t blocks = (job.rows * job.classes + kNumbers - 1) / kNumbers;
  const unsigned grid = unsigned(std::clamp<int64_t>(blocks, 1, 16 * int64_t(call.limits.sms)));
  UDSKD_LAUNCH(kKernel, grid, kScaleThreads, 0, call.stream, job);
  call.check("scale");
}

}  // namespace

int compiled_capability() {
#ifdef UDSKD_EMULATE
  return 1000;
#else
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, scale<float>) == cudaSuccess ? attributes.ptxVersion : 0;
#endif
}

void launch_careful_rows(Job& job, Call& call) { job.p.wide ? rows_of<double>(job, call) : rows_of<float>(job, call); }

void launch_careful_gradients(Job& job, Call& call) {
  job.p.wide ? gradients_of<double>(job, call) : gradients_of<float>(job, call);
}

void launch_count(const Job& job, Call& call) {
  constexpr int kRowsOfThread = 16;
  const int64_t blocks = (job.p.rows + kThreads * kRowsOfThread - 1) / (kThreads * kRowsOfThread);
  const unsigned grid = unsigned(std::clamp<int64_t>(blocks, 1, 2 * int64_t(call.limits.sms)));
  UDSKD_LAUNCH(count, grid, kThreads, kGroupStorageBytes, call.stream, job);
  call.check("count");
}

void launch_scale(const ScaleJob& job, bool wide, Call& call) {
  wide ? scale_of<double>(job, call) : scale_of<float>(job, call);
}

}  // namespace udskd::cuda
