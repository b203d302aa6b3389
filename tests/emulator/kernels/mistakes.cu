// Kernels with undefined behaviour, which may seem to work on a GPU. The emulator ends the process in each of them.
#include "emulator.h"

namespace {

__global__ void barrier_of_some() {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_against_shuffle(int* out) {
  if (threadIdx.x == 3) __syncthreads();
  *out = __shfl_sync(~0u, 1, 0);
}

__global__ void mask_without_caller(int* out) { out[threadIdx.x] = __shfl_xor_sync(0x7fffffffu, 1, 1); }

__global__ void mask_of_the_exited(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}

__global__ void two_shuffles(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(~0u, 2, 1);
  }
}

__global__ void width_of_three(int* out) { out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1, 3); }

__global__ void load(const uint4* from, uint4* to) { *to = __ldcs(from); }

__global__ void add(float* to) { atomicAdd(to, 1); }

__global__ void cluster_of_some() {
  if (emu::cluster_rank() == 0) emu::cluster_sync();
}

__global__ void block_against_cluster() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    emu::cluster_sync();
  }
}

__global__ void map_of_another_memory(int* x) { *emu::cluster_map(x, 1) = 1; }

__global__ void map_beyond_the_cluster() {
  UDSKD_SHARED(shared);
  *emu::cluster_map(shared, 2) = 1;
}

// Waits for a block that may not run at the same time.
__global__ void wait_for_the_next(unsigned* arrived) {
  atomicAdd(arrived, 1);
  while (*static_cast<volatile unsigned*>(arrived) < 1000) __nanosleep(100);
}

__global__ void deep(int n, int* out) {
  volatile char large[1024];
  for (char volatile& x : large) x = char(n);
  __syncwarp(1u);
  if (n > 0) deep(n - 1, out);
  *out += large[n % 1024];
}

__global__ void beyond_shared(int n) {
  UDSKD_SHARED(shared);
  reinterpret_cast<float*>(shared)[n + int(threadIdx.x)] = 1;
}

__global__ void beyond_global(float* x, int n) { x[n + int(threadIdx.x)] = 1; }

// Reads the memory of another block after the last barrier, when that block may have exited.
__global__ void read_late(int* out) {
  UDSKD_SHARED(shared);
  auto* const mine = reinterpret_cast<int*>(shared);
  const int* const theirs = emu::cluster_map(mine, 1 - emu::cluster_rank());
  *mine = 1;
  emu::cluster_sync();
  out[blockIdx.x] = *theirs;
}

alignas(16) unsigned char memory[1024];
int* const kMemory = reinterpret_cast<int*>(memory);

}  // namespace

extern "C" {

void run_barrier_of_some() { UDSKD_LAUNCH(barrier_of_some, 1, 64, 0, nullptr); }
void run_two_barriers() { UDSKD_LAUNCH(two_barriers, 1, 64, 0, nullptr); }
void run_barrier_against_shuffle() { UDSKD_LAUNCH(barrier_against_shuffle, 1, 32, 0, nullptr, kMemory); }
void run_mask_without_caller() { UDSKD_LAUNCH(mask_without_caller, 1, 32, 0, nullptr, kMemory); }
void run_mask_of_the_exited() { UDSKD_LAUNCH(mask_of_the_exited, 1, 32, 0, nullptr, kMemory); }
void run_mask_of_the_absent() { UDSKD_LAUNCH(mask_of_the_exited, 1, 4, 0, nullptr, kMemory); }
void run_two_shuffles() { UDSKD_LAUNCH(two_shuffles, 1, 32, 0, nullptr, kMemory); }
void run_width_of_three() { UDSKD_LAUNCH(width_of_three, 1, 32, 0, nullptr, kMemory); }
void run_misaligned_load() {
  UDSKD_LAUNCH(load, 1, 1, 0, nullptr, reinterpret_cast<uint4*>(memory + 8), reinterpret_cast<uint4*>(memory + 64));
}
void run_misaligned_atomic() { UDSKD_LAUNCH(add, 1, 1, 0, nullptr, reinterpret_cast<float*>(memory + 2)); }
void run_cluster_of_some() { UDSKD_LAUNCH_CLUSTER(cluster_of_some, 2, 4, 32, 0, nullptr); }
void run_block_against_cluster() { UDSKD_LAUNCH_CLUSTER(block_against_cluster, 2, 2, 64, 0, nullptr); }
void run_map_of_another_memory() { UDSKD_LAUNCH_CLUSTER(map_of_another_memory, 2, 2, 32, 64, nullptr, kMemory); }
void run_map_beyond_the_cluster() { UDSKD_LAUNCH_CLUSTER(map_beyond_the_cluster, 2, 2, 32, 64, nullptr); }
void run_wait_for_the_next() {
  UDSKD_LAUNCH(wait_for_the_next, 1000, 1, 0, nullptr, reinterpret_cast<unsigned*>(memory));
}
void run_deep() { UDSKD_LAUNCH(deep, 1, 1, 0, nullptr, 300, kMemory); }
void run_beyond_shared() { UDSKD_LAUNCH(beyond_shared, 1, 32, 32 * sizeof(float), nullptr, 1); }
void run_beyond_global() {
  auto* const x = new float[32];
  UDSKD_LAUNCH(beyond_global, 1, 32, 0, nullptr, x, 1);
  delete[] x;
}
void run_read_late() { UDSKD_LAUNCH_CLUSTER(read_late, 2, 2, 1, sizeof(int), nullptr, kMemory); }
}
