// Gradients that are ready, multiplied in place by a number that only the GPU knows. Rows that count for nothing stay 0
// whatever that number is.
#pragma once

#include <climits>

#include "../../common/cuda/vec16.h"
#include "generic.h"

namespace udskd::cuda {

constexpr int kScaleThreads = 128, kScaleAhead = 4;  // packets of a thread that are under way at once

template <class Acc>
__device__ bool counts(const ScaleJob& job, int64_t row) {
  return static_cast<const Acc*>(job.saved)[row * kColumns + kShare] != 0;
}

// Which row a number is of, and which number the next row begins with.
struct RowOf {
  int64_t row, next;
  bool live;
  __device__ RowOf(const ScaleJob& job, int64_t i, bool short_indices)
      : row(short_indices ? int(i) / int(job.classes) : i / job.classes),
        next((row + 1) * job.classes),
        live(counts<float>(job, row)) {}
};

// A packet that more than one row has a part of, or that begins before the first or ends beyond the last.
template <class E>
__device__ __noinline__ void scale_singly(const ScaleJob& job, E* gradient, int64_t first, int64_t end, float by) {
  RowOf of(job, first < 0 ? 0 : first, end <= INT_MAX);
#pragma unroll 1
  for (int64_t i = first < 0 ? 0 : first; i < first + kCount<E> && i < end; ++i) {
    if (i == of.next) of = RowOf(job, i, end <= INT_MAX);
    if (of.live) narrow(widened(gradient[i]) * by, gradient + i);
  }
}

// All rows as one array, packet by packet of memory: short rows would leave most of a block to nobody.
template <class E>
__device__ void scale_packets(const ScaleJob& job, E* gradient, float by) {
  const int before = int(reinterpret_cast<uintptr_t>(gradient) % 16 / sizeof(E));
  const int64_t end = job.rows * job.classes, packets = (before + end + kCount<E> - 1) / kCount<E>;
  const int64_t threads = int64_t(gridDim.x) * blockDim.x, me = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t packet = me; packet < packets; packet += kScaleAhead * threads) {
    Packet<E> x[kScaleAhead];
    const auto begin = [&](int i) { return (packet + i * threads) * kCount<E> - before; };
    const auto whole = [&](int64_t first) { return first >= 0 && first + kCount<E> <= end; };
#pragma unroll
    for (int i = 0; i < kScaleAhead; ++i)
      if (whole(begin(i))) x[i] = read<true>(gradient + begin(i));
#pragma unroll
    for (int i = 0; i < kScaleAhead; ++i) {
      const int64_t first = begin(i);
      if (first >= end) break;
      const RowOf of(job, first < 0 ? 0 : first, end <= INT_MAX);
      if (!whole(first) || first + kCount<E> > of.next) {
        scale_singly(job, gradient, first, end, by);
      } else if (of.live) {
        float numbers[kCount<E>];
        widen(x[i], numbers);
#pragma unroll
        for (int v = 0; v < kCount<E>; ++v) numbers[v] *= by;
        write(gradient + first, 0, kCount<E>, numbers);
      }
    }
  }
}

__device__ inline void scale_matrix(const ScaleJob& job, int which, float by) {
  void* const gradient = job.gradients[which];
  if (job.dtypes[which] == ScalarType::Float) return scale_packets(job, static_cast<float*>(gradient), by);
  if (job.dtypes[which] == ScalarType::Half) return scale_packets(job, static_cast<Half*>(gradient), by);
  scale_packets(job, static_cast<BFloat16*>(gradient), by);
}

// Where the arithmetic is double's: any dtype, number by number.
__device__ inline void scale_matrix(const ScaleJob& job, int which, double by) {
  const Values<double, Any> old(Matrix{job.gradients[which], job.classes, job.dtypes[which]}, 0);
  const int64_t end = job.rows * job.classes, threads = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < end; i += threads)
    if (counts<double>(job, i / job.classes)) put<Any>(job.gradients[which], i, job.dtypes[which], old(i) * by);
}

template <class Acc>
__global__ void __launch_bounds__(kScaleThreads) scale(const __grid_constant__ ScaleJob job) {
  const Acc by = *static_cast<const Acc*>(job.grad_loss);
  if (by == 1) return;
  for (int which = 0; which < 3; ++which)
    if (job.gradients[which]) scale_matrix(job, which, by);
}

}  // namespace udskd::cuda
