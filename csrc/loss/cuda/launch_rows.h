// From a plan to the kernel of it, for one format of logits; included by that format's source.
#pragma once

#include "gradients.h"
#include "launch.h"
#include "rows.h"

namespace udskd::cuda {

template <class E>
constexpr Format kFormatOf = std::is_same_v<E, float>      ? kFloat
                             : std::is_same_v<E, BFloat16> ? kBFloat16
                                                           : kHalf;

// Blocks of a multiprocessor that the compiler leaves registers for: as many as it can without spilling any.
constexpr int blocks_left_room_for(Regime regime, bool usual) {
  constexpr int kUsual[kRegimes] = {3, 4, 2, 4, 2, 2, 2, 2};
  return usual ? kUsual[regime] : regime == kSplit ? 1 : 3;
}

// The grid is what runs at a time, and no more than `groups` of `group` blocks.
template <auto kKernel>
unsigned prepare(Job& job, int threads, int64_t shared, int64_t groups, int group, bool meets, Call& call) {
  const int64_t at_once = int64_t(call.limits.sms) * blocks_of_sm<kKernel>(threads, shared, call);
  const int64_t taken = std::clamp<int64_t>(groups, 1, std::max<int64_t>(1, at_once / group));
  give_memory(job, taken * group, meets ? taken : 0, call);
  return unsigned(taken * group);
}

template <class E, bool kUsual, Regime kRegime>
void launch_in_registers(Job& job, Call& call) {
  if constexpr (compiled(kRegime, kFormatOf<E>, kUsual)) {
    constexpr int kGroupThreads = kLanes[kRegime];
    using Team = std::conditional_t<(kGroupThreads > kWarp), Block<kGroupThreads>, ThreadGroup<kGroupThreads>>;
    using Kind = InRegisters<kInRegisters[kRegime][kFormatOf<E>]>;
    constexpr auto kKernel = rows<E, Team, Kind, kUsual, blocks_left_room_for(kRegime, kUsual)>;
    constexpr int kRows = Team::kBlockThreads / Team::kGroupThreads;
    const int64_t blocks = (job.p.rows + kRows - 1) / kRows;
    const unsigned grid = prepare<kKernel>(job, Team::kBlockThreads, kStoreBegin, blocks, 1, false, call);
    UDSKD_LAUNCH(kKernel, grid, Team::kBlockThreads, kStoreBegin, call.stream, job);
    call.check(name_of(kRegime));
  }
}

template <class E>
int64_t shared_bytes(const Plan& plan) {
  return kStoreBegin + int64_t(3) * 16 * kWordsOf[kFormatOf<E>] * kLanes[kInShared] * plan.packets_of_thread;
}

template <class E, bool kUsual>
void launch_in_shared(const Plan& plan, Job& job, Call& call) {
  if constexpr (compiled(kInShared, kFormatOf<E>, kUsual)) {
    constexpr int kThreads = kLanes[kInShared];
    constexpr auto kKernel = rows<E, Block<kThreads>, InShared, kUsual, blocks_left_room_for(kInShared, kUsual)>;
    const int64_t bytes = shared_bytes<E>(plan);
    const unsigned grid = prepare<kKernel>(job, kThreads, bytes, job.p.rows, 1, false, call);
    UDSKD_LAUNCH(kKernel, grid, kThreads, bytes, call.stream, job);
    call.check(name_of(kInShared));
  }
}

template <class E>
void launch_split(const Plan& plan, Job& job, Call& call) {
  constexpr int kThreads = kLanes[kSplit];
  constexpr auto kKernel = rows<E, BlockGroup<kThreads>, InMemory, false, blocks_left_room_for(kSplit, false)>;
  const int at_once = call.limits.sms * blocks_of_sm<kKernel>(kThreads, kStoreBegin, call);
  job.group = unsigned(plan.group);
  while (int(job.group) > at_once) job.group /= 2;
  const unsigned grid = prepare<kKernel>(job, kThreads, kStoreBegin, job.p.rows, int(job.group), job.group > 1, call);
  if (job.group == 1) {  // nobody to meet
    UDSKD_LAUNCH(kKernel, grid, kThreads, kStoreBegin, call.stream, job);
  } else {
    UDSKD_LAUNCH_COOPERATIVE(kKernel, job.group, grid, kThreads, kStoreBegin, call.stream, job);
  }
  call.check(name_of(kSplit));
}

template <class E, bool kUsual>
void launch_in_cluster(const Plan& plan, Job& job, Call& call) {
  if constexpr (compiled(kInCluster, kFormatOf<E>, kUsual)) {
    constexpr int kThreads = kLanes[kInCluster];
    constexpr auto kKernel = rows<E, Cluster<kThreads>, InShared, kUsual, blocks_left_room_for(kInCluster, kUsual)>;
    const int64_t bytes = shared_bytes<E>(plan);
    const int at_once = clusters_at_once<kKernel>(kThreads, bytes, plan.group, call);
    if (at_once == 0) return launch_split<E>(plan, job, call);  // such as on a part of a GPU
    const unsigned grid = unsigned(std::clamp<int64_t>(job.p.rows, 1, at_once)) * unsigned(plan.group);
    give_memory(job, grid, 0, call);
    UDSKD_LAUNCH_CLUSTER(kKernel, unsigned(plan.group), grid, kThreads, bytes, call.stream, job);
    call.check(name_of(kInCluster));
  }
}

template <class E, bool kUsual>
void launch_planned(const Plan& plan, Job& job, Call& call) {
  job.packets_of_thread = plan.packets_of_thread;
  switch (plan.regime) {
    case kLanes8:
      return launch_in_registers<E, kUsual, kLanes8>(job, call);
    case kWarp1:
      return launch_in_registers<E, kUsual, kWarp1>(job, call);
    case kWarp8:
      return launch_in_registers<E, kUsual, kWarp8>(job, call);
    case kBlock128:
      return launch_in_registers<E, kUsual, kBlock128>(job, call);
    case kBlock256:
      return launch_in_registers<E, kUsual, kBlock256>(job, call);
    case kInShared:
      return launch_in_shared<E, kUsual>(plan, job, call);
    case kInCluster:
      return launch_in_cluster<E, kUsual>(plan, job, call);
    default:
      return launch_split<E>(plan, job, call);
  }
}

template <class E>
void launch_rows_of(const Plan& plan, Job& job, Call& call) {
  if (plan.usual) return launch_planned<E, true>(plan, job, call);
  launch_planned<E, false>(plan, job, call);
}

template <class E>
void launch_gradients_of(Job& job, Call& call) {
  const int64_t packets = job.p.classes / kCount<E> + 2;
  if (packets <= 64) {
    constexpr auto kKernel = gradients<E, ThreadGroup<kWarp>>;
    const int at_once = blocks_of_sm<kKernel>(128, kGroupStorageBytes, call);
    UDSKD_LAUNCH(kKernel, grid_for(job.p.rows, 4, at_once, call.limits), 128, kGroupStorageBytes, call.stream, job);
  } else {
    constexpr auto kKernel = gradients<E, Block<256>>;
    const int at_once = blocks_of_sm<kKernel>(256, kGroupStorageBytes, call);
    const unsigned across = grid_for(job.p.rows, 1, at_once, call.limits);
    const unsigned along = grid_for(packets, 1024, at_once, call.limits);  // four packets to a thread
    UDSKD_LAUNCH(kKernel, dim3(across, along), 256, kGroupStorageBytes, call.stream, job);
  }
  call.check("gradients");
}

}  // namespace udskd::cuda

// Each format has a source of its own, so that they are compiled side by side.
#define UDSKD_FORMAT(E, name)                                                                             \
  namespace udskd::cuda {                                                                                 \
  void launch_rows_##name(const Plan& plan, Job& job, Call& call) { launch_rows_of<E>(plan, job, call); } \
  void launch_gradients_##name(Job& job, Call& call) { launch_gradients_of<E>(job, call); }               \
  }
