// What needs all rows: each row's share of the loss, and the sums over rows, which the last block to finish adds up in
// a fixed order.
#pragma once

#include "../../common/cuda/thread_group.h"
#include "scalars.h"

namespace udskd::cuda {

constexpr int kTotals = kComponents + 1;

// A row's columns, 16 bytes at a time: both are aligned to that. kOthers: they may be what another block has written.
template <bool kOthers = false, class Acc>
__device__ void copy_columns(const Acc* from, Acc* to) {
  static_assert(kColumns * sizeof(Acc) % 16 == 0);
#pragma unroll
  for (int k = 0; k < int(kColumns * sizeof(Acc) / 16); ++k) {
    const uint4* const some = reinterpret_cast<const uint4*>(from) + k;
    reinterpret_cast<uint4*>(to)[k] = kOthers ? __ldcg(some) : *some;
  }
}

constexpr int kMostTeams = 16;  // of a block
constexpr int kLedgerBytes = kMostTeams * kTotals * 8 + 128;

__device__ inline bool ignored(const Problem& p, int64_t row) { return p.labels && p.labels[row] == p.ignore_index; }

// Of every `step`th label from `begin` on, those of rows that count.
template <class Group>
__device__ double live_labels(const Problem& p, Group& block, int64_t begin, int64_t step) {
  int live[1] = {0};
#pragma unroll 8
  for (int64_t row = begin + threadIdx.x; row < p.rows; row += step) live[0] += !ignored(p, row);
  block.reduce(live, Add());
  return live[0];
}

// The rows that count, known in every block; a mean is known before a gradient is.
template <class Group>
__device__ double live_rows(const Job& job, Group& block) {
  if (!job.p.labels) return double(job.p.rows);
  return job.live ? double(*job.live) : live_labels(job.p, block, 0, Group::kBlockThreads);
}

// Weights that are to be divided by their mean are known when all rows are done; so is, then, what they weigh.
__device__ inline bool deferred(const Problem& p) { return p.normalize_weights && p.teacher; }

// kTeams: of a block, each of which does a row at a time.
template <class Acc, int kTeams>
class Ledger {
 public:
  __device__ Ledger(const Job& job, unsigned char* shared, int team)
      : job_(job), sums_(reinterpret_cast<double*>(shared)), team_(team) {
    static_assert(kTeams <= kMostTeams);
    for (int k = int(threadIdx.x); k < kTeams * kTotals; k += kWarp * 4) sums_[k] = 0;  // no block has fewer threads
    if (threadIdx.x == 0) *left_flag() = 0;
    __syncthreads();
  }

  // By any thread: there is a row that this block has not done. By all, after a barrier: whether there is.
  __device__ void leave() { atomicOr(left_flag(), 1u); }
  __device__ bool left() const { return *left_flag() != 0; }

  // By one thread, once for each row.
  __device__ void enter(int64_t row, const Acc* columns) {
    copy_columns(columns, static_cast<Acc*>(job_.saved) + row * kColumns);
    static_cast<Acc*>(job_.weight)[row] = columns[kWeight], static_cast<Acc*>(job_.entropy)[row] = columns[kEntropy];
    if (deferred(job_.p)) return;
    Acc terms[kTotals];
    terms_of(row, columns, terms);
    for (int k = 0; k < kTotals; ++k) sums_[team_ * kTotals + k] += double(terms[k]);
  }

  // By all threads of all blocks, after the last row. live: the rows that count.
  template <class Group>
  __device__ void close(double live, Group& block) {
    if (job_.p.reduction == kUnreduced && !deferred(job_.p)) return;
    __syncthreads();
    if (!last_to_finish()) return;
    if (deferred(job_.p)) return settle(live, block);
    const int lane = threadIdx.x % kWarp, warps = Group::kBlockThreads / kWarp;
#pragma unroll 1
    for (int k = threadIdx.x / kWarp; k < kTotals; k += warps) {
      double total[1] = {0};
#pragma unroll 4
      for (unsigned i = lane; i < gridDim.x; i += kWarp) total[0] += __ldcg(job_.totals + i * kTotals + k);
      reduce_lanes<kWarp>(~0u, total, Add());
      if (lane == 0) give(k, total[0], live);
    }
  }

 private:
  const Job& job_;
  double* sums_;
  int team_;

  __device__ unsigned* left_flag() const { return reinterpret_cast<unsigned*>(sums_ + kMostTeams * kTotals); }
  __device__ unsigned* last_flag() const { return left_flag() + 1; }

  // A row's components and loss, of which unreduced ones are written at once.
  __device__ void terms_of(int64_t row, const Acc* columns, Acc (&terms)[kTotals]) const {
    const Problem& p = job_.p;
    for (int k = 0; k < kTotals; ++k) terms[k] = 0;
    if (columns[kShare] != 0) {
      row_components<Acc>(p, columns, terms);
      terms[kComponents] = row_loss<Acc>(p, row, terms);
    }
    if (p.reduction != kUnreduced) return;
    for (int k = 0; k < kComponents; ++k) static_cast<Acc*>(job_.components)[k * p.rows + row] = terms[k];
    static_cast<Acc*>(job_.loss)[row] = terms[kComponents];
  }

  // Leaves this block's sums; true in the block that comes last, which then sees those of all.
  __device__ bool last_to_finish() {
    if (threadIdx.x < kTotals) {
      double sum = 0;
#pragma unroll
      for (int team = 0; team < kTeams; ++team) sum += sums_[team * kTotals + int(threadIdx.x)];
      __stcg(job_.totals + int64_t(blockIdx.x) * kTotals + threadIdx.x, sum);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      *last_flag() = atomicAdd(job_.finished, 1u) == gridDim.x - 1;
      __threadfence();
    }
    __syncthreads();
    return *last_flag() != 0;
  }

  __device__ void give(int k, double total, double live) const {
    // 0 / 0 is NaN, as in F.cross_entropy when every row is ignored
    const Acc result = Acc(job_.p.reduction == kMean ? total / live : total);
    static_cast<Acc*>(k < kComponents ? job_.components : job_.loss)[k < kComponents ? k : 0] = result;
  }

  // Normalises the weights of all rows, whose other columns are there already, and adds up what follows.
  template <class Group>
  __device__ __noinline__ void settle(double live, Group block) const {
    const Problem& p = job_.p;
    double counts[2] = {};  // rows whose weight is a number, and the sum of these weights
#pragma unroll 1
    for (int64_t row = threadIdx.x; row < p.rows; row += Group::kBlockThreads) {
      const Acc share = __ldcg(columns_of(row) + kShare), weight = __ldcg(columns_of(row) + kWeight);
      if (share != 0 && weight == weight) counts[0] += 1, counts[1] += double(weight);
    }
    block.reduce(counts, Add());
    const double scale = counts[1] > 0 ? counts[0] / counts[1] : 1;
    double totals[kTotals] = {};
#pragma unroll 1
    for (int64_t row = threadIdx.x; row < p.rows; row += Group::kBlockThreads) {
      alignas(16) Acc columns[kColumns], terms[kTotals];
      copy_columns<true>(columns_of(row), columns);
      columns[kWeight] = Acc(double(columns[kWeight]) * scale);
      columns_of(row)[kWeight] = static_cast<Acc*>(job_.weight)[row] = columns[kWeight];
      terms_of(row, columns, terms);
      for (int k = 0; k < kTotals; ++k) totals[k] += double(terms[k]);
    }
    block.reduce(totals, Add());
    for (int k = 0; k < kTotals && threadIdx.x == 0 && p.reduction != kUnreduced; ++k) give(k, totals[k], live);
  }

  __device__ Acc* columns_of(int64_t row) const { return static_cast<Acc*>(job_.saved) + row * kColumns; }
};

}  // namespace udskd::cuda
