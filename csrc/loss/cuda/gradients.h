// The gradients from what the forward pass saved of each row: one visit of the logits, nothing to be added up.
#pragma once

#include "generic.h"

namespace udskd::cuda {

template <class Acc>
__device__ Acc share_of(const Job& job, int64_t row, const Acc* s) {
  const Acc* const grad_loss = static_cast<const Acc*>(job.grad_loss);
  const Acc share = s[kShare] < 0 ? -s[kShare] : s[kShare];
  return share == 0 || !grad_loss ? share : share * grad_loss[row * job.grad_stride];
}

template <class Acc>
__device__ void gradients_of_coefficients(const Job& job, int64_t row, const Acc* s, Acc share) {
  Acc components[kComponents];
  row_components<Acc>(job.p, s, components);
  for (int k = 0; k < 3; ++k)
    static_cast<Acc*>(job.coefficients)[3 * row + k] =
        s[kShare] == 0 ? Acc(0) : share * (components[2 * k] + components[2 * k + 1]);
}

// Packets that gridDim.y blocks share, or a warp has to itself.
template <class E, class Team>
__device__ void gradients_of_packets(const Job& job, int64_t row, const float* s, float share, const Team& team) {
  const Problem& p = job.p;
  const auto at = [&](const Matrix& m) { return m ? static_cast<const E*>(m.data) + row * m.stride : nullptr; };
  const auto to = [&](void* gradient) { return gradient ? static_cast<E*>(gradient) + row * p.classes : nullptr; };
  E *const to_a = to(job.to_a), *const to_b = to(job.to_b);
  Row<E> from{at(p.teacher), at(p.a), at(p.b), int(p.classes)};
  from.align(to_a ? to_a : to_b);
  const int64_t label = p.labels ? p.labels[row] : -1;
  const bool known = label >= 0 && label < p.classes;
  const RowScales r = row_scales(job, row, known ? int(label) : -1, s, share);
  Divergences unused;
  for (int packet = int(blockIdx.y) * Team::kGroupThreads + team.rank(); packet < from.packets;
       packet += int(gridDim.y) * Team::kGroupThreads) {
    const int c = from.begin(packet, from.packets);
    visit<false, false>(job, r, row, c, read_three<true, false>(from, c), to_a, to_b, unused);
  }
}

// Rows that count for nothing, or were done with care: their sums are not of the same exponentials to the last bit.
template <class E, class Team>
__device__ __noinline__ void seldom(const Job& job, int64_t row, const float* s, float share, Team team) {
  gradients_of_row<E, float>(job, row, s, share, team);
}

template <class E, class Team>
__global__ void __launch_bounds__(Team::kBlockThreads) gradients(const __grid_constant__ Job job) {
  UDSKD_SHARED(shared);
  constexpr int kEach = Team::kBlockThreads / Team::kGroupThreads;
  Team team(GroupStorage{shared});
  for (int64_t row = int64_t(blockIdx.x) * kEach + threadIdx.x / Team::kGroupThreads; row < job.p.rows;
       row += int64_t(gridDim.x) * kEach) {
    const float* const saved = static_cast<const float*>(job.saved) + row * kColumns;
    alignas(16) float s[kColumns];
    copy_columns(saved, s);
    const float share = share_of<float>(job, row, s);
    if (job.coefficients && blockIdx.y == 0 && team.rank() == 0) gradients_of_coefficients<float>(job, row, s, share);
    if (share != 0 && s[kShare] > 0) {
      if (job.gradients()) gradients_of_packets<E>(job, row, s, share, team);
    } else if (blockIdx.y == 0) {
      seldom<E>(job, row, saved, share, team);
    }
  }
}

// The statistics once more, so that nothing is a little different from what it is subtracted from.
template <class Acc>
__global__ void __launch_bounds__(256) careful_gradients(const __grid_constant__ Job job) {
  UDSKD_SHARED(shared);
  Block<256> block(GroupStorage{shared});
  for (int64_t row = blockIdx.x; row < job.p.rows; row += gridDim.x) {
    const Acc* const s = static_cast<const Acc*>(job.saved) + row * kColumns;
    const Acc share = share_of<Acc>(job, row, s);
    Acc columns[kColumns] = {};
    if (share != 0) statistics_of_row<Any, Acc>(job, row, block, columns), columns[kWeight] = s[kWeight];
    gradients_of_row<Any, Acc>(job, row, columns, share, block);
    if (job.coefficients && block.rank() == 0) gradients_of_coefficients<Acc>(job, row, s, share);
  }
}

}  // namespace udskd::cuda
