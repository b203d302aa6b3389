// Groups of threads that work on one row: some lanes of a warp (ThreadGroup), a block (Block), the blocks of a cluster
// (Cluster), or blocks that exchange numbers through global memory (BlockGroup). All of them have
//
//   rank(), size()       the index of this thread in the group, and the number of threads
//   part(), parts()      the index of this block in the group, and the number of blocks
//   reduce(x, combine)   combines x[k] of all threads, for every k, in a fixed order; every thread gets the same bits
//   sync()               a barrier of the group, after which its threads see each other's writes
//
// kGroupThreads is the number of threads of a group in one block, kBlockThreads the number of threads of a block.
#pragma once

#include <type_traits>

#include "cuda.h"

namespace udskd::cuda {

constexpr int kWarp = 32;
constexpr int kMaxReduced = 10;  // numbers in one call of reduce()

struct Add {
  template <class T>
  __device__ T operator()(T x, T y) const {
    return x + y;
  }
};

// Ignores NaN. Kernels detect NaN in sums.
struct Larger {
  __device__ float operator()(float x, float y) const { return fmaxf(x, y); }
  __device__ double operator()(double x, double y) const { return fmax(x, y); }
};

template <int kLanes, int N, class T, class Combine>
__device__ void reduce_lanes(unsigned mask, T (&x)[N], Combine combine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = combine(x[k], __shfl_xor_sync(mask, x[k], offset));
  }
}

// The memory of a group, and for a BlockGroup the position of this block in it.
struct GroupStorage {
  unsigned char* shared;              // kGroupStorageBytes of the block's shared memory
  unsigned char* exchange = nullptr;  // for BlockGroup: kExchangeBytes of global memory for the numbers of its blocks,
  unsigned* arrivals = nullptr;       // and the count of the blocks' arrivals at barriers, 0 at the launch
  unsigned group = 1, part = 0;       // the number of blocks of the group, and the index of this one
};

constexpr int kBlockBytes = 2 * kMaxReduced * kWarp * 8;               // numbers of the block's warps, in two buffers
constexpr int kGroupStorageBytes = kBlockBytes + 2 * kMaxReduced * 8;  // and numbers of the cluster's blocks
constexpr int kMaxGroupBlocks = 256;                                   // blocks of a group
constexpr int64_t kExchangeBytes = 2 * kMaxReduced * kMaxGroupBlocks * 8;

template <int kLanes>
class ThreadGroup {
 public:
  static constexpr int kGroupThreads = kLanes, kBlockThreads = 128;
  static constexpr bool kOneBlock = true;
  __device__ explicit ThreadGroup(const GroupStorage&)
      : mask_(kLanes == kWarp ? ~0u : ((1u << kLanes % kWarp) - 1) << threadIdx.x % kWarp / kLanes * kLanes) {}
  __device__ int rank() const { return int(threadIdx.x % kLanes); }
  __device__ int size() const { return kLanes; }
  __device__ int part() const { return 0; }
  __device__ int parts() const { return 1; }
  __device__ void sync() { __syncwarp(mask_); }
  template <int N, class T, class Combine>
  __device__ void reduce(T (&x)[N], Combine combine) {
    reduce_lanes<kLanes>(mask_, x, combine);
  }

 private:
  unsigned mask_;
};

template <int kThreads>
class Block {
 public:
  static constexpr int kGroupThreads = kThreads, kBlockThreads = kThreads, kWarps = kThreads / kWarp;
  static constexpr bool kOneBlock = true;
  __device__ explicit Block(const GroupStorage& storage) : shared_(storage.shared) {}
  __device__ int rank() const { return int(threadIdx.x); }
  __device__ int size() const { return kThreads; }
  __device__ int part() const { return 0; }
  __device__ int parts() const { return 1; }
  __device__ void sync() { __syncthreads(); }
  // One barrier is enough: the next reduce() writes to the other buffer, and its barrier precedes the reduce()
  // after it.
  template <int N, class T, class Combine>
  __device__ void reduce(T (&x)[N], Combine combine) {
    static_assert(N <= kMaxReduced);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    T* const warps = reinterpret_cast<T*>(shared_ + (buffer_ ^= 1) * (kBlockBytes / 2));
    reduce_lanes<kWarp>(~0u, x, combine);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (lane == 0) warps[k * kWarps + warp] = x[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = warps[k * kWarps + lane % kWarps];
    reduce_lanes<kWarps>(~0u, x, combine);
  }

 protected:
  unsigned char* shared_;
  int buffer_ = 0;
};

// Combines the partial results of the blocks of a row, of which each lane of the warp holds one.
template <int kMaxLanes, int N, class T, class Combine>
__device__ void reduce_parts(int parts, T (&x)[N], Combine combine) {
  for (int offset = kMaxLanes / 2; offset > 0; offset /= 2) {
    if (offset >= parts) continue;
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = combine(x[k], __shfl_xor_sync(~0u, x[k], offset));
  }
}

#ifdef UDSKD_EMULATE
using emu::cluster_map;
using emu::cluster_rank;
using emu::cluster_size;
using emu::cluster_sync;
#else
__device__ inline unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
__device__ inline unsigned cluster_size() {
  unsigned size = 1;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}
__device__ inline void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// The address in another block of the cluster that corresponds to `mine` in the shared memory of this one.
template <class T>
__device__ T* cluster_map(T* mine, unsigned rank) {
  T* theirs = mine;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
#endif
  return theirs;
}
#endif

// A cluster: its blocks, a power of two, read each other's shared memory (compute capability 9.0 and later).
template <int kThreads>
class Cluster : public Block<kThreads> {
 public:
  static constexpr bool kOneBlock = false;
  __device__ explicit Cluster(const GroupStorage& storage)
      : Block<kThreads>(storage), parts_(int(cluster_size())), part_(int(cluster_rank())) {}
  __device__ int rank() const { return part_ * kThreads + int(threadIdx.x); }
  __device__ int size() const { return parts_ * kThreads; }
  __device__ int part() const { return part_; }
  __device__ int parts() const { return parts_; }
  __device__ void sync() { cluster_sync(); }
  template <int N, class T, class Combine>
  __device__ void reduce(T (&x)[N], Combine combine) {
    Block<kThreads>::reduce(x, combine);
    T* const mine = reinterpret_cast<T*>(this->shared_ + kBlockBytes + this->buffer_ * kMaxReduced * 8);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (threadIdx.x == 0) mine[k] = x[k];
    cluster_sync();
    const T* const theirs = cluster_map(mine, threadIdx.x % kWarp % unsigned(parts_));
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = theirs[k];
    reduce_parts<kWarp>(parts_, x, combine);
  }

 private:
  int parts_, part_;
};

// A power of two of blocks that all run at the same time and exchange numbers through global memory.
template <int kThreads>
class BlockGroup : public Block<kThreads> {
 public:
  static constexpr bool kOneBlock = false;
  __device__ explicit BlockGroup(const GroupStorage& storage)
      : Block<kThreads>(storage),
        exchange_(storage.exchange),
        arrivals_(storage.arrivals),
        parts_(int(storage.group)),
        part_(int(storage.part)) {}
  __device__ int rank() const { return part_ * kThreads + int(threadIdx.x); }
  __device__ int size() const { return parts_ * kThreads; }
  __device__ int part() const { return part_; }
  __device__ int parts() const { return parts_; }

  __device__ void sync() {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) wait();
    __syncthreads();
  }

  // Not inlined: most of its time is the wait for the other blocks.
  template <int N, class T, class Combine>
  __device__ __noinline__ void reduce(T (&x)[N], Combine combine) {
    Block<kThreads>::reduce(x, combine);
    if (parts_ == 1) return;
    T* const all = reinterpret_cast<T*>(exchange_ + this->buffer_ * kMaxReduced * kMaxGroupBlocks * 8);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (threadIdx.x == 0) __stcg(all + k * kMaxGroupBlocks + part_, x[k]);
    sync();
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      x[k] = __ldcg(all + k * kMaxGroupBlocks + lane % parts_);
      for (int other = lane + kWarp; other < parts_; other += kWarp)
        x[k] = combine(x[k], __ldcg(all + k * kMaxGroupBlocks + other));
    }
    reduce_parts<kWarp>(parts_, x, combine);
  }

 private:
  unsigned char* exchange_;
  unsigned* arrivals_;
  int parts_, part_;
  unsigned expected_ = 0;  // arrivals at the end of the barrier

  // The count is never reset, so that an arrival at the next barrier cannot be mistaken for one at this barrier.
  __device__ void wait() {
    expected_ += unsigned(parts_);
    if (parts_ == 1) return;
    atomicAdd(arrivals_, 1u);
    while (*static_cast<volatile unsigned*>(arrivals_) < expected_) __nanosleep(20);
    __threadfence();
  }
};

}  // namespace udskd::cuda
