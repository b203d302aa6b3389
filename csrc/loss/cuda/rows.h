// The kernels that give the loss, and with it, where they are asked for, the gradients: one launch for all rows.
#pragma once

#include "generic.h"
#include "row_pass.h"

namespace udskd::cuda {

constexpr int kStoreBegin = kGroupStorageBytes + kLedgerBytes;  // in shared memory
static_assert(kStoreBegin % 16 == 0);

// Which of the grid's teams this thread is in, and how many there are.
template <class Team>
struct Position {
  int64_t team, teams;
  __device__ explicit Position(const Job& job) {
    if constexpr (Team::kOneBlock) {
      constexpr int kEach = Team::kBlockThreads / Team::kGroupThreads;
      team = int64_t(blockIdx.x) * kEach + threadIdx.x / Team::kGroupThreads, teams = int64_t(gridDim.x) * kEach;
    } else {
      const unsigned blocks = std::is_same_v<Team, BlockGroup<Team::kBlockThreads>> ? job.group : cluster_size();
      team = blockIdx.x / blocks, teams = gridDim.x / blocks;
    }
  }
};

template <class Team>
__device__ GroupStorage place_of(const Job& job, unsigned char* shared) {
  GroupStorage place{shared};
  if constexpr (std::is_same_v<Team, BlockGroup<Team::kBlockThreads>>) {
    const unsigned group = blockIdx.x / job.group;
    place.exchange = job.exchange + group * kExchangeBytes, place.arrivals = job.arrivals + group * kArrivals;
    place.group = job.group, place.part = blockIdx.x % job.group;
  }
  return place;
}

template <class E, class Team>
__device__ void clear(const Job& job, int64_t row, Team& team) {
  const auto zero = [&](void* to) {
    for (int64_t c = team.rank(); to && c < job.p.classes; c += team.size())
      narrow(0.f, static_cast<E*>(to) + row * job.p.classes + c);
  };
  zero(job.to_a), zero(job.to_b);
}

// What a row's share is replaced by until it has been done with care.
constexpr float kUndone = -INFINITY;

template <class E, bool kUsual, class Team, class Store, class Ledger>
__device__ void do_row(const Job& job, int64_t row, float share, Team& team, Store& store, Ledger& ledger) {
  alignas(16) float columns[kColumns] = {};
  if (ignored(job.p, row)) {
    clear<E>(job, row, team);
  } else {
    columns[kShare] = share;
    if (!RowPass<E, Team, Store, kUsual>(job, team, store).run(row, share, columns)) columns[kShare] = kUndone;
  }
  if (team.rank() != 0) return;
  if (columns[kShare] == kUndone) {
    static_cast<float*>(job.saved)[row * kColumns + kShare] = kUndone, ledger.leave();
  } else {
    ledger.enter(row, columns);
  }
}

// The rows that this block's teams left, with care, one after the other by the whole block.
template <class E, class Team, class Group, class Ledger>
__device__ __noinline__ void do_rest(const Job& job, const Position<Team>& at, float share, Group group,
                                     Ledger& ledger) {
  constexpr int kEach = Team::kOneBlock ? Team::kBlockThreads / Team::kGroupThreads : 1;
  for (int64_t first = at.team - threadIdx.x / Team::kGroupThreads % kEach; first < job.p.rows; first += at.teams) {
    for (int64_t row = first; row < first + kEach && row < job.p.rows; ++row) {
      if (static_cast<const float*>(job.saved)[row * kColumns + kShare] != kUndone) continue;
      alignas(16) float columns[kColumns];
      careful_row<E, float>(job, row, group, share, columns);
      columns[kShare] = -share;
      if (threadIdx.x == 0) ledger.enter(row, columns);
    }
  }
}

// A store per row in flight; Kind is one of row_cache.h.
template <class E, class Team, class Kind, bool kUsual, int kBlocks>
__global__ void __launch_bounds__(Team::kBlockThreads, kBlocks) rows(const __grid_constant__ Job job) {
  UDSKD_SHARED(shared);
  using Store = typename Kind::template Of<E, Team, kUsual>;
  const Position<Team> at(job);
  Ledger<float, Team::kBlockThreads / Team::kGroupThreads> ledger(job, shared + kGroupStorageBytes,
                                                                  int(threadIdx.x) / Team::kGroupThreads);
  Block<Team::kBlockThreads> block(GroupStorage{shared});
  const double live = job.p.reduction == kMean ? live_rows(job, block) : 1;
  __syncthreads();  // the team's first reduce() may write where the block's last one is read
  Team team(place_of<Team>(job, shared));
  Store store(shared + kStoreBegin, job.packets_of_thread);
  const float share = float(1 / live);
  for (int64_t row = at.team; row < job.p.rows; row += at.teams)
    do_row<E, kUsual>(job, row, share, team, store, ledger);
  team.sync();  // nobody leaves while others may read what is its own
  __syncthreads();
  if (ledger.left()) do_rest<E>(job, at, share, block, ledger);
  ledger.close(live, block);
}

// Whatever the float kernels do not have: every row with care.
template <class Acc>
__global__ void __launch_bounds__(256) careful_rows(const __grid_constant__ Job job) {
  UDSKD_SHARED(shared);
  Ledger<Acc, 1> ledger(job, shared + kGroupStorageBytes, 0);
  Block<256> block(GroupStorage{shared});
  const double live = job.p.reduction == kMean ? live_rows(job, block) : 1;
  for (int64_t row = blockIdx.x; row < job.p.rows; row += gridDim.x) {
    alignas(16) Acc columns[kColumns] = {};
    if (ignored(job.p, row)) {
      gradients_of_row<Any, Acc>(job, row, columns, Acc(0), block);
    } else {
      careful_row<Any, Acc>(job, row, block, Acc(1 / live), columns);
    }
    if (block.rank() == 0) ledger.enter(row, columns);
  }
  __syncthreads();
  ledger.close(live, block);
}

}  // namespace udskd::cuda
