// Teams of threads that share a row: some lanes of a warp, a block, the blocks of a cluster, or blocks that meet in
// global memory. A team folds numbers of its threads into one that all of them get, in an order that never changes.
//
//   team.rank(), team.size()     this thread among the team's
//   team.fold(x, combine)        x[k] of all threads combined, for every k; the same bits in every thread
//   team.sync()                  all threads of the team have come here, and see each other's writes
#pragma once

#include <type_traits>

#include "cuda.h"

namespace udskd::cuda {

constexpr int kWarp = 32;
constexpr int kFolded = 10;  // numbers that are folded at once, at most

struct Add {
  template <class T>
  __device__ T operator()(T x, T y) const {
    return x + y;
  }
};

// NaN is dropped. Where it matters it is found in sums.
struct Larger {
  __device__ float operator()(float x, float y) const { return fmaxf(x, y); }
  __device__ double operator()(double x, double y) const { return fmax(x, y); }
};

template <int kLanes, int N, class T, class Combine>
__device__ void fold_lanes(unsigned mask, T (&x)[N], Combine combine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = combine(x[k], __shfl_xor_sync(mask, x[k], offset));
  }
}

// What a team is told when its kernel begins.
struct GroupStorage {
  unsigned char* shared;              // kGroupStorageBytes of the block's shared memory
  unsigned char* exchange = nullptr;  // for BlockGroup: kExchangeBytes where the blocks of a group leave numbers,
  unsigned* arrivals = nullptr;       // and count who has come: 0 at the launch
  unsigned group = 1, part = 0;       // the blocks of a group, and which of them this is
};

constexpr int kBlockBytes = 2 * kFolded * kWarp * 8;               // numbers of a block's warps, two sets in turn
constexpr int kGroupStorageBytes = kBlockBytes + 2 * kFolded * 8;  // and of a cluster's blocks
constexpr int kMostGroupBlocks = 256;                              // blocks of a group
constexpr int64_t kExchangeBytes = 2 * kFolded * kMostGroupBlocks * 8;

template <int kLanes>
class ThreadGroup {
 public:
  static constexpr int kGroupThreads = kLanes, kBlock = 128;
  static constexpr bool kOneBlock = true;
  __device__ explicit ThreadGroup(const GroupStorage&)
      : mask_(kLanes == kWarp ? ~0u : ((1u << kLanes % kWarp) - 1) << threadIdx.x % kWarp / kLanes * kLanes) {}
  __device__ int rank() const { return int(threadIdx.x % kLanes); }
  __device__ int size() const { return kLanes; }
  __device__ int part() const { return 0; }
  __device__ int parts() const { return 1; }
  __device__ void sync() { __syncwarp(mask_); }
  template <int N, class T, class Combine>
  __device__ void fold(T (&x)[N], Combine combine) {
    fold_lanes<kLanes>(mask_, x, combine);
  }

 private:
  unsigned mask_;
};

template <int kThreads>
class Block {
 public:
  static constexpr int kGroupThreads = kThreads, kBlock = kThreads, kWarps = kThreads / kWarp;
  static constexpr bool kOneBlock = true;
  __device__ explicit Block(const GroupStorage& place) : shared_(place.shared) {}
  __device__ int rank() const { return int(threadIdx.x); }
  __device__ int size() const { return kThreads; }
  __device__ int part() const { return 0; }
  __device__ int parts() const { return 1; }
  __device__ void sync() { __syncthreads(); }
  // One barrier: the next fold writes to the other set, and the one after it comes after the next one's barrier.
  template <int N, class T, class Combine>
  __device__ void fold(T (&x)[N], Combine combine) {
    static_assert(N <= kFolded);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    T* const warps = reinterpret_cast<T*>(shared_ + (turn_ ^= 1) * (kBlockBytes / 2));
    fold_lanes<kWarp>(~0u, x, combine);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (lane == 0) warps[k * kWarps + warp] = x[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = warps[k * kWarps + lane % kWarps];
    fold_lanes<kWarps>(~0u, x, combine);
  }

 protected:
  unsigned char* shared_;
  int turn_ = 0;
};

// Folds over the blocks of a row, each of which has folded its own.
template <int kLanesMost, int N, class T, class Combine>
__device__ void fold_parts(int parts, T (&x)[N], Combine combine) {
  for (int offset = kLanesMost / 2; offset > 0; offset /= 2) {
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
// Where another block of the cluster has what this one has at `mine` in its shared memory.
template <class T>
__device__ T* cluster_map(T* mine, unsigned rank) {
  T* theirs = mine;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
#endif
  return theirs;
}
#endif

// A power of two of blocks, which read each other's shared memory (compute capability 9.0 and later).
template <int kThreads>
class Cluster : public Block<kThreads> {
 public:
  static constexpr bool kOneBlock = false;
  __device__ explicit Cluster(const GroupStorage& place)
      : Block<kThreads>(place), parts_(int(cluster_size())), part_(int(cluster_rank())) {}
  __device__ int rank() const { return part_ * kThreads + int(threadIdx.x); }
  __device__ int size() const { return parts_ * kThreads; }
  __device__ int part() const { return part_; }
  __device__ int parts() const { return parts_; }
  __device__ void sync() { cluster_sync(); }
  template <int N, class T, class Combine>
  __device__ void fold(T (&x)[N], Combine combine) {
    Block<kThreads>::fold(x, combine);
    T* const mine = reinterpret_cast<T*>(this->shared_ + kBlockBytes + this->turn_ * kFolded * 8);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (threadIdx.x == 0) mine[k] = x[k];
    cluster_sync();
    const T* const theirs = cluster_map(mine, threadIdx.x % kWarp % unsigned(parts_));
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = theirs[k];
    fold_parts<kWarp>(parts_, x, combine);
  }

 private:
  int parts_, part_;
};

// Any power of two of blocks, all of them running, which leave each other numbers in global memory.
template <int kThreads>
class BlockGroup : public Block<kThreads> {
 public:
  static constexpr bool kOneBlock = false;
  __device__ explicit BlockGroup(const GroupStorage& place)
      : Block<kThreads>(place),
        exchange_(place.exchange),
        arrivals_(place.arrivals),
        parts_(int(place.group)),
        part_(int(place.part)) {}
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

  // Not inlined: its time is that of the meeting.
  template <int N, class T, class Combine>
  __device__ __noinline__ void fold(T (&x)[N], Combine combine) {
    Block<kThreads>::fold(x, combine);
    if (parts_ == 1) return;
    T* const all = reinterpret_cast<T*>(exchange_ + this->turn_ * kFolded * kMostGroupBlocks * 8);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (threadIdx.x == 0) __stcg(all + k * kMostGroupBlocks + part_, x[k]);
    sync();
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      x[k] = __ldcg(all + k * kMostGroupBlocks + lane % parts_);
      for (int other = lane + kWarp; other < parts_; other += kWarp)
        x[k] = combine(x[k], __ldcg(all + k * kMostGroupBlocks + other));
    }
    fold_parts<kWarp>(parts_, x, combine);
  }

 private:
  unsigned char* exchange_;
  unsigned* arrivals_;
  int parts_, part_;
  unsigned met_ = 0;

  // Arrivals only count up, from 0 at the launch: so none is taken for one of the next meeting.
  __device__ void wait() {
    met_ += unsigned(parts_);
    if (parts_ == 1) return;
    atomicAdd(arrivals_, 1u);
    while (*static_cast<volatile unsigned*>(arrivals_) < met_) __nanosleep(20);
    __threadfence();
  }
};

}  // namespace udskd::cuda
