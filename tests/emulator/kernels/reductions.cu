// Kernels that add numbers up in different ways. Some of them can omit a barrier.
#include "emulator.h"

namespace {

__device__ float add_up_warp(float x) {
  for (int offset = 16; offset; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// `shared` has room for one number of each warp.
__device__ float add_up_block(float x, float* shared) {
  x = add_up_warp(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x < blockDim.x / 32 ? shared[threadIdx.x] : 0;
  return add_up_warp(x);  // valid in the first warp
}

// A block uses the same shared memory for one row after the other.
__global__ void row_sums(const float* x, float* sums, int rows, int n, bool every_barrier) {
  UDSKD_SHARED(shared);
  for (int row = int(blockIdx.x); row < rows; row += int(gridDim.x)) {
    float sum = 0;
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) sum += x[row * n + i];
    sum = add_up_block(sum, reinterpret_cast<float*>(shared));
    if (threadIdx.x == 0) sums[row] = sum;
    if (every_barrier) __syncthreads();
  }
}

// Each cluster adds up a row, and every block of it gets the sum.
template <bool kFirstBarrier, bool kLastBarrier>
__global__ void cluster_sums(const float* x, float* sums, int n) {
  UDSKD_SHARED(shared);
  auto* const mine = reinterpret_cast<float*>(shared);
  const unsigned rank = emu::cluster_rank(), blocks = emu::cluster_size(), row = blockIdx.x / blocks;
  float sum = 0;
  for (int i = int(rank * blockDim.x + threadIdx.x); i < n; i += int(blocks * blockDim.x)) sum += x[int(row) * n + i];
  sum = add_up_block(sum, mine + 1);
  if (threadIdx.x == 0) *mine = sum;
  if (kFirstBarrier) emu::cluster_sync();
  float all = 0;
  for (unsigned other = 0; other < blocks; ++other) all += *emu::cluster_map(mine, other);
  if (kLastBarrier) emu::cluster_sync();
  if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

// The block that finishes last adds up the partial sums of the others.
__global__ void ticket_sum(const float* x, float* partial, unsigned* tickets, float* sum, int n) {
  UDSKD_SHARED(shared);
  auto* const last = reinterpret_cast<unsigned*>(shared);
  float mine = 0;
  const int step = int(gridDim.x * blockDim.x);
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += step) mine += x[i];
  mine = add_up_block(mine, reinterpret_cast<float*>(shared) + 1);
  if (threadIdx.x == 0) {
    __stcg(partial + blockIdx.x, mine);
    __threadfence();
    *last = atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*last) return;
  __threadfence();
  mine = threadIdx.x < gridDim.x ? __ldcg(partial + threadIdx.x) : 0;
  mine = add_up_block(mine, reinterpret_cast<float*>(shared) + 1);
  if (threadIdx.x == 0) *sum = mine;
}

// Every block waits for the others of its group, then reads what they have written.
__global__ void group_sums(const int* x, int* written, unsigned* arrivals, int* sums, unsigned group) {
  const unsigned first = blockIdx.x / group * group;
  if (threadIdx.x == 0) {
    written[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    atomicAdd(arrivals + first, 1);
    while (*static_cast<volatile unsigned*>(arrivals + first) < group) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  sums[blockIdx.x] = 0;
  for (unsigned other = first; other < first + group; ++other) sums[blockIdx.x] += __ldcg(written + other);
}

// Each block writes to the next one's shared memory.
__global__ void pass_on(int* received, bool first_barrier) {
  UDSKD_SHARED(shared);
  auto* const mine = reinterpret_cast<int*>(shared);
  if (first_barrier) emu::cluster_sync();
  *emu::cluster_map(mine, (emu::cluster_rank() + 1) % emu::cluster_size()) = int(emu::cluster_rank());
  emu::cluster_sync();
  received[blockIdx.x] = *mine;
}

}  // namespace

extern "C" {

void run_row_sums(const float* x, float* sums, int rows, int n, int grid, int every_barrier) {
  UDSKD_LAUNCH(row_sums, grid, 128, 4 * sizeof(float), nullptr, x, sums, rows, n, every_barrier);
}

void run_cluster_sums(const float* x, float* sums, int rows, int n, int cluster) {
  const dim3 grid(unsigned(rows * cluster));
  UDSKD_LAUNCH_CLUSTER((cluster_sums<true, true>), cluster, grid, 64, 3 * sizeof(float), nullptr, x, sums, n);
}

void run_cluster_sums_without_first_barrier(const float* x, float* sums, int rows, int n, int cluster) {
  const dim3 grid(unsigned(rows * cluster));
  UDSKD_LAUNCH_CLUSTER((cluster_sums<false, true>), cluster, grid, 64, 3 * sizeof(float), nullptr, x, sums, n);
}

void run_cluster_sums_without_last_barrier() {
  float x[64] = {}, sums[4];
  UDSKD_LAUNCH_CLUSTER((cluster_sums<true, false>), 2, 4, 64, 3 * sizeof(float), nullptr, x, sums, 32);
}

void run_ticket_sum(const float* x, float* partial, unsigned* tickets, float* sum, int n, int grid) {
  UDSKD_LAUNCH(ticket_sum, grid, 64, 3 * sizeof(float), nullptr, x, partial, tickets, sum, n);
}

void run_group_sums(const int* x, int* written, unsigned* arrivals, int* sums, int blocks, int group) {
  UDSKD_LAUNCH_COOPERATIVE(group_sums, group, blocks, 64, 0, nullptr, x, written, arrivals, sums, unsigned(group));
}

void run_pass_on(int* received, int cluster, int first_barrier) {
  UDSKD_LAUNCH_CLUSTER(pass_on, cluster, cluster, 1, sizeof(int), nullptr, received, first_barrier);
}
}
