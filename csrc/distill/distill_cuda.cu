// The operator on CUDA, in the recompute form: one block for each row, statistics in the forward pass, gradients in the
// backward pass.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "../backend/cuda.h"
#include "operator.h"

#define HD __device__

namespace udskd {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }

// All threads of a block share a row. Reductions follow a fixed tree, and every thread gets the result.
template <class Acc>
struct Block {
  template <class Combine>
  static __device__ Acc reduce(Acc x, Combine combine) {
    __shared__ Acc warps[kWarps];
    for (int offset = 16; offset; offset /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
    __syncthreads();  // the previous reduction's results have been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = warps[0];
    for (int warp = 1; warp < kWarps; ++warp) x = combine(x, warps[warp]);
    return x;
  }

  template <class F>
  __device__ Acc max(int64_t n, F f) const {
    Acc best = -Acc(INFINITY);
    for (int64_t c = threadIdx.x; c < n; c += kThreads) {
      const Acc x = f(c);
      best = x > best ? x : best;
    }
    return reduce(best, [](Acc x, Acc y) { return x > y ? x : y; });
  }

  template <int N, class F>
  __device__ void sum(int64_t n, F f, Acc (&sums)[N]) const {
    for (int k = 0; k < N; ++k) sums[k] = 0;
    for (int64_t c = threadIdx.x; c < n; c += kThreads) {
      Acc terms[N];
      f(c, terms);
      for (int k = 0; k < N; ++k) sums[k] += terms[k];
    }
    for (int k = 0; k < N; ++k) sums[k] = reduce(sums[k], [](Acc x, Acc y) { return x + y; });
  }

  template <class F>
  __device__ void blocks(int64_t n, F f) const {
    for (int64_t c = threadIdx.x; c < n; c += kThreads) f(c, std::integral_constant<int, 1>());
  }
};

#include "row_scalars.h"
#include "row_team.h"

// One row of a matrix, converted as it is read.
template <class Acc>
struct Values {
  const void* data;
  ScalarType dtype;
  __device__ Values(const Matrix& m, int64_t row) : data(nullptr), dtype(m.dtype) {
    const int64_t bytes = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
    if (m.data) data = static_cast<const char*>(m.data) + row * m.stride * bytes;
  }
  __device__ Acc operator()(int64_t c) const {
    switch (dtype) {
      case ScalarType::Double:
        return Acc(static_cast<const double*>(data)[c]);
      case ScalarType::Float:
        return Acc(static_cast<const float*>(data)[c]);
      case ScalarType::Half:
        return Acc(__half2float(static_cast<const __half*>(data)[c]));
      default:
        return Acc(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[c]));
    }
  }
};

template <class Acc>
__device__ void store(void* to, int64_t i, ScalarType dtype, Acc x) {
  switch (dtype) {
    case ScalarType::Double:
      static_cast<double*>(to)[i] = double(x);
      break;
    case ScalarType::Float:
      static_cast<float*>(to)[i] = float(x);
      break;
    case ScalarType::Half:
      static_cast<__half*>(to)[i] = __float2half_rn(float(x));
      break;
    default:
      static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(float(x));
  }
}

// The backward pass in plain pointers; null for each gradient that was not asked for.
struct Backward {
  const void *saved, *grad_loss;
  int64_t grad_stride;
  void *teacher, *a, *b, *coefficients;
};

template <class Acc>
__global__ void __launch_bounds__(kThreads) statistics(Problem p, Acc* saved) {
  const Block<Acc> team;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    Acc out[kColumns] = {};
    if (!p.labels || p.labels[row] != p.ignore_index) {
      const Values<Acc> teacher(p.teacher, row), a(p.a, row), b(p.b, row), target(p.target, row);
      if (p.teacher) out[kMaxT] = team.max(p.classes, teacher);
      out[kMaxA] = team.max(p.classes, a);
      if (p.b) out[kMaxB] = team.max(p.classes, b);
      row_statistics<Acc>(team, p, row, shifted<Acc>(teacher, out[kMaxT]), shifted<Acc>(a, out[kMaxA]),
                          shifted<Acc>(b, out[kMaxB]), target_of<Acc>(p, row, target), out);
      out[kShare] = 1;
    }
    if (threadIdx.x == 0)
      for (int k = 0; k < kColumns; ++k) saved[row * kColumns + k] = out[k];
  }
}

struct Results {
  void *loss, *components, *weight, *entropy;
};

// What needs all rows, by one block in a fixed order: normalisation of the weights, each row's share, the loss and its
// components.
template <class Acc>
__global__ void __launch_bounds__(kThreads) finish(Problem p, Acc* saved, Results to) {
  const Block<double> team;
  double counts[3];  // rows that are not ignored; those whose weight is a number, and the sum of these weights
  auto count = [=](int64_t row, double* terms) {
    const Acc *s = saved + row * kColumns, weight = s[kWeight];
    const bool live = s[kShare] != 0, weighed = live && weight == weight;
    terms[0] = live, terms[1] = weighed, terms[2] = weighed ? double(weight) : 0;
  };
  team.sum(p.rows, count, counts);
  const double scale = p.normalize_weights && p.teacher && counts[2] > 0 ? counts[1] / counts[2] : 1;
  const Acc share = Acc(p.reduction == kMean ? 1 / counts[0] : 1);
  const bool each = p.reduction == kUnreduced;

  double totals[kComponents + 1];
  auto settle = [=](int64_t row, double* terms) {
    Acc *s = saved + row * kColumns, c[kComponents] = {}, loss = 0;
    if (s[kShare] != 0) {
      s[kShare] = share, s[kWeight] = Acc(double(s[kWeight]) * scale);
      row_components<Acc>(p, s, c);
      loss = row_loss<Acc>(p, row, c);
    }
    static_cast<Acc*>(to.weight)[row] = s[kWeight], static_cast<Acc*>(to.entropy)[row] = s[kEntropy];
    for (int k = 0; k < kComponents; ++k) {
      if (each) static_cast<Acc*>(to.components)[k * p.rows + row] = c[k];
      terms[k] = double(c[k]);
    }
    if (each) static_cast<Acc*>(to.loss)[row] = loss;
    terms[kComponents] = double(loss);
  };
  team.sum(p.rows, settle, totals);
  if (each || threadIdx.x != 0) return;
  const double by =
      p.reduction == kMean ? counts[0] : 1;  // 0 / 0 is NaN, as in F.cross_entropy when every row is ignored
  for (int k = 0; k < kComponents; ++k) static_cast<Acc*>(to.components)[k] = Acc(totals[k] / by);
  *static_cast<Acc*>(to.loss) = Acc(totals[kComponents] / by);
}

template <class Acc>
__device__ void student_row(const Problem& p, int64_t row, const Acc* s, Acc share, bool is_b, void* to) {
  const auto teacher = shifted<Acc>(Values<Acc>(p.teacher, row), s[kMaxT]);
  const auto x = shifted<Acc>(Values<Acc>(is_b ? p.b : p.a, row), s[is_b ? kMaxB : kMaxA]);
  const auto other = shifted<Acc>(Values<Acc>(is_b ? p.a : p.b, row), s[is_b ? kMaxA : kMaxB]);
  const auto y = target_of<Acc>(p, row, Values<Acc>(p.target, row));
  const StudentScales<Acc> scales = student_scales<Acc>(p, row, s, share, is_b);
  const Acc inverse = Acc(1 / p.temperature), inverse_peer = Acc(1 / p.peer_temperature);
  Block<Acc>().blocks(p.classes, [=](int64_t c, auto width) {
    Acc g = 0;
    if (share != 0) student_gradient<Acc>(&g, c, width, scales, x, teacher, other, y, inverse, inverse_peer);
    store(to, row * p.classes + c, p.a.dtype, g);
  });
}

template <class Acc>
__device__ void teacher_row(const Problem& p, int64_t row, const Acc* s, Acc share, void* to) {
  const auto teacher = shifted<Acc>(Values<Acc>(p.teacher, row), s[kMaxT]),
             a = shifted<Acc>(Values<Acc>(p.a, row), s[kMaxA]), b = shifted<Acc>(Values<Acc>(p.b, row), s[kMaxB]);
  const Acc scale = share * value<Acc>(p.kd, row) * s[kWeight] * Acc(p.temperature), inverse = Acc(1 / p.temperature);
  const bool flows = p.has_kd() && share != 0;
  Block<Acc>().blocks(p.classes, [=](int64_t c, auto) {
    Acc g = flows ? teacher_gradient<Acc>(c, teacher, a, inverse, s[kSumT], s[kSumA], s[kKlTA], scale) : Acc(0);
    if (flows && p.b) g += teacher_gradient<Acc>(c, teacher, b, inverse, s[kSumT], s[kSumB], s[kKlTB], scale);
    store(to, row * p.classes + c, p.teacher.dtype, g);
  });
}

template <class Acc>
__global__ void __launch_bounds__(kThreads) gradients(Problem p, Backward to) {
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const Acc* s = static_cast<const Acc*>(to.saved) + row * kColumns;
    const Acc share = s[kShare] == 0 ? Acc(0) : s[kShare] * static_cast<const Acc*>(to.grad_loss)[row * to.grad_stride];
    if (to.teacher) teacher_row<Acc>(p, row, s, share, to.teacher);
    if (to.a) student_row<Acc>(p, row, s, share, false, to.a);
    if (to.b) student_row<Acc>(p, row, s, share, true, to.b);
    if (!to.coefficients || threadIdx.x != 0) continue;
    Acc c[kComponents];
    row_components<Acc>(p, s, c);
    for (int k = 0; k < 3; ++k)
      static_cast<Acc*>(to.coefficients)[3 * row + k] = s[kShare] == 0 ? Acc(0) : share * (c[2 * k] + c[2 * k + 1]);
  }
}

unsigned grid(const Problem& p) { return unsigned(std::clamp<int64_t>(p.rows, 1, 1 << 20)); }

template <class Acc>
void launch_forward(const Problem& p, Outputs& out, const OnDevice& on) {
  Acc* saved = static_cast<Acc*>(out.rows.mutable_data_ptr());
  statistics<Acc><<<grid(p), kThreads, 0, on.stream()>>>(p, saved);
  on.check("udskd statistics", p.rows, p.classes);
  finish<Acc><<<1, kThreads, 0, on.stream()>>>(p, saved,
                                               {out.loss.mutable_data_ptr(), out.components.mutable_data_ptr(),
                                                out.weight.mutable_data_ptr(), out.entropy.mutable_data_ptr()});
  on.check("udskd finish", p.rows, p.classes);
}

Outputs forward_cuda(const Problem& p, const Tensor& like) {
  const OnDevice on(like);
  Outputs out = allocate(p, like, kColumns);
  p.wide ? launch_forward<double>(p, out, on) : launch_forward<float>(p, out, on);
  return out;
}

void backward_cuda(const Problem& p, const Tensor& grad_loss, const Tensor& saved, Gradients& to) {
  const OnDevice on(saved);
  const Backward job{saved.const_data_ptr(),
                     grad_loss.const_data_ptr(),
                     grad_loss.dim() == 0 ? 0 : grad_loss.stride(0),
                     pointer(to.teacher),
                     pointer(to.a),
                     pointer(to.b),
                     pointer(to.coefficients)};
  if (p.wide) {
    gradients<double><<<grid(p), kThreads, 0, on.stream()>>>(p, job);
  } else {
    gradients<float><<<grid(p), kThreads, 0, on.stream()>>>(p, job);
  }
  on.check("udskd gradients", p.rows, p.classes);
}

}  // namespace
}  // namespace udskd

UDSKD_REGISTER(CUDA, udskd::forward_cuda, udskd::backward_cuda)
