// The kernels for everything else: double, networks of different dtypes, teachers that learn, peers that are not
// detached; and the one that scales gradients.
#include "gradients.h"
#include "launch.h"
#include "rows.h"

namespace udskd::cuda {
namespace {

constexpr int kThreads = 256;

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
  const int at_once = blocks_of_sm<kKernel>(kThreads, kTeamBytes, call);
  UDSKD_LAUNCH(kKernel, grid_for(job.p.rows, 1, at_once, call.limits), kThreads, kTeamBytes, call.stream, job);
  call.check("careful_gradients");
}

template <class Acc>
void scale_of(const ScaleJob& job, Call& call) {
  constexpr int kEach = 8;  // classes of a thread
  constexpr auto kKernel = scale<Acc>;
  const unsigned across = grid_for(job.rows, 1, 16, call.limits);  // few: mostly they return at once
  const int64_t most = std::max<int64_t>(1, 16 * int64_t(call.limits.sms) / across);
  const unsigned along = unsigned(std::clamp<int64_t>(job.classes / (128 * kEach), 1, most));
  UDSKD_LAUNCH(kKernel, dim3(across, along), 128, 0, call.stream, job);
  call.check("scale");
}

}  // namespace

int compiled_for() {
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

void launch_scale(const ScaleJob& job, bool wide, Call& call) {
  wide ? scale_of<double>(job, call) : scale_of<float>(job, call);
}

}  // namespace udskd::cuda
