// Launches: grids that fill the GPU once, memory for what the blocks tell each other, shared memory beyond 48 KiB.
#pragma once

#include <algorithm>
#include <atomic>

#include "../../common/cuda/thread_group.h"
#include "launch_api.h"
#include "reduce.h"

namespace udskd::cuda {

constexpr int kDevices = 64;

// How many blocks of a kernel a multiprocessor runs at a time. Asked once for each size of shared memory in turn.
template <auto kKernel>
int blocks_of_sm(int threads, int64_t shared, Call& call) {
  static std::atomic<int64_t> known[kDevices];  // shared memory and answer of the last question
  std::atomic<int64_t>& last = known[call.device % kDevices];
  const int64_t seen = last.load(std::memory_order_relaxed);
  if (seen % 64 && seen / 64 == shared) return int(seen % 64);
  if (shared > 48 << 10)
    cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(call.limits.shared));
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, size_t(shared));
  blocks = std::clamp(blocks, 1, 63);
  last.store(shared * 64 + blocks, std::memory_order_relaxed);
  return blocks;
}

// How many clusters of so many blocks the GPU runs at a time: fewer than its multiprocessors have room for, since a
// cluster's are neighbours. Asked once for each shape in turn.
template <auto kKernel>
int clusters_at_once(int threads, int64_t shared, int group, Call& call) {
  static std::atomic<int64_t> known[kDevices];  // shape, and the answer
  std::atomic<int64_t>& last = known[call.device % kDevices];
  const int64_t seen = last.load(std::memory_order_relaxed), shape = (shared * 16 + group) << 16;
  if (seen >> 16 << 16 == shape) return int(seen & 0xffff);
  if (shared > 48 << 10)
    cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(call.limits.shared));
  const int clusters = std::clamp(max_clusters(kKernel, threads, shared, group), 0, 0xffff);
  last.store(shape | clusters, std::memory_order_relaxed);
  return clusters;
}

inline bool adds_up(const Problem& p) { return p.reduction != kUnreduced || (p.normalize_weights && p.teacher); }

constexpr int64_t kCountedByAll = 16384;  // labels that every block counts for itself: a guess, never measured

// Memory for the blocks' totals and the groups' exchange; the counters in it are set to 0 in the stream's order.
inline void give_memory(Job& job, int64_t blocks, int64_t groups, Call& call) {
  const int64_t counters = 128 + groups * kArrivals * 4, exchange = groups * kExchangeBytes;
  if (!adds_up(job.p) && !groups) return;
  auto* const memory = static_cast<unsigned char*>(call.memory(counters + exchange + blocks * kTotals * 8));
  cudaMemsetAsync(memory, 0, size_t(counters), call.stream);
  call.check("memset");
  job.finished = reinterpret_cast<unsigned*>(memory), job.arrivals = job.finished + 32;
  job.exchange = memory + counters, job.totals = reinterpret_cast<double*>(memory + counters + exchange);
  if (job.p.reduction != kMean || !job.p.labels || job.p.rows <= kCountedByAll) return;
  job.live = reinterpret_cast<unsigned long long*>(memory + 64);
  launch_count(job, call);
}

// A block for every so many rows, as many as the GPU runs at a time.
inline unsigned grid_for(int64_t rows, int rows_of_block, int blocks_of_sm, const Device& device) {
  const int64_t wanted = (rows + rows_of_block - 1) / rows_of_block, at_once = int64_t(device.sms) * blocks_of_sm;
  return unsigned(std::clamp<int64_t>(wanted, 1, at_once));
}

}  // namespace udskd::cuda
