// Operations of each kind, whose results the tests compare with CUDA's manual.
#include "emulator.h"

namespace {

// The result of each shuffle in each lane of a warp.
__global__ void shuffles(float* out, float by, int width) {
  const int lane = int(threadIdx.x);
  out[lane] = __shfl_sync(~0u, float(lane), int(by), width);
  out[32 + lane] = __shfl_up_sync(~0u, float(lane), unsigned(by), width);
  out[64 + lane] = __shfl_down_sync(~0u, float(lane), unsigned(by), width);
  out[96 + lane] = __shfl_xor_sync(~0u, float(lane), int(by), width);
}

// The two halves of a warp execute different branches.
__global__ void halves(double* out) {
  const int lane = int(threadIdx.x);
  double x = lane;
  if (lane < 16) {
    for (int offset = 8; offset; offset /= 2) x += __shfl_xor_sync(0x0000ffffu, x, offset);
  } else {
    for (int offset = 8; offset; offset /= 2) x = fmax(x, __shfl_xor_sync(0xffff0000u, x, offset));
  }
  __syncwarp();
  out[lane] = x;
}

__global__ void absent_lane(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 16);
}

__global__ void votes(const int* x, unsigned* out) {
  const int mine = x[threadIdx.x];
  const unsigned results[] = {
      __ballot_sync(~0u, mine > 0),           unsigned(__any_sync(~0u, mine > 0)),
      unsigned(__all_sync(~0u, mine > 0)),    unsigned(__reduce_add_sync(~0u, mine)),
      unsigned(__reduce_max_sync(~0u, mine)), unsigned(__reduce_min_sync(~0u, mine)),
      __reduce_max_sync(~0u, unsigned(mine)), unsigned(__syncthreads_count(mine > 0)),
      unsigned(__syncthreads_or(mine > 0)),   unsigned(__syncthreads_and(mine > 0)),
  };
  for (int k = 0; k < 10; ++k) out[k * 32 + int(threadIdx.x)] = results[k];
}

struct Totals {
  int count, largest, smallest;
  unsigned turns, replaced;
  float sum;
  double precise;
  unsigned long long wide;
};

__global__ void atomics(Totals* totals) {
  const int mine = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&totals->count, 1);
  atomicAdd(&totals->sum, 1);
  atomicAdd(&totals->precise, 0.5);
  atomicAdd(&totals->wide, 1ull << 32);
  atomicMax(&totals->largest, mine);
  atomicMin(&totals->smallest, -mine);
  atomicInc(&totals->turns, 9);
  for (unsigned seen = totals->replaced, was; (was = atomicCAS(&totals->replaced, seen, seen + 2)) != seen;) seen = was;
}

__global__ void indices(int* out) {
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += int(block * 1000 + thread);
}

__global__ void powers(const float* x, float* y, int n) {
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x))
    y[i] = emu_ex2(x[i]);
}

// The position of each thread in the order of execution.
__global__ void arrivals(unsigned* out, unsigned* count) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(count, 1);
}

__global__ void unwritten(float* out) {
  UDSKD_SHARED(shared);
  auto* const x = reinterpret_cast<float*>(shared);
  *out = *x;
  *x = 1;
}

}  // namespace

extern "C" {

void run_shuffles(float* out, int by, int width) { UDSKD_LAUNCH(shuffles, 1, 32, 0, nullptr, out, by, width); }
void run_halves(double* out) { UDSKD_LAUNCH(halves, 1, 32, 0, nullptr, out); }
void run_absent_lane(float* out) { UDSKD_LAUNCH(absent_lane, 1, 32, 0, nullptr, out); }
void run_votes(const int* x, unsigned* out) { UDSKD_LAUNCH(votes, 1, 32, 0, nullptr, x, out); }
void run_atomics(void* totals) { UDSKD_LAUNCH(atomics, 8, 100, 0, nullptr, static_cast<Totals*>(totals)); }
void run_indices(int* out) { UDSKD_LAUNCH(indices, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, out); }
void run_powers(const float* x, float* y, int n) { UDSKD_LAUNCH(powers, 2, 256, 0, nullptr, x, y, n); }
void run_arrivals(unsigned* out, int grid, int block) {
  unsigned count = 0;
  UDSKD_LAUNCH(arrivals, grid, block, 0, nullptr, out, &count);
}
void run_unwritten(float* out) { UDSKD_LAUNCH(unwritten, 1, 1, sizeof(float), nullptr, out); }
}
