// A row by any team, with everything that a row may be: any dtype of each network, infinities, learning teachers,
// peers whose divergences flow both ways. What the float kernels do not have, or find not to be finite, is done here.
#pragma once

#include "reduce.h"

namespace udskd::cuda {

template <class T, class Team, class Combine>
__device__ __noinline__ T fold_one(Team& team, T x, Combine combine) {
  T folded[1] = {x};
  team.reduce(folded, combine);
  return folded[0];
}

// The team as generic_math.h wants it. Small code rather than fast.
template <class Acc, class Team>
struct Strided {
  Team* team;

  template <class F>
  __device__ Acc max(int64_t n, F f) const {
    Acc best = -Acc(INFINITY);
#pragma unroll 1
    for (int64_t c = team->rank(); c < n; c += team->size()) {
      const Acc x = f(c);
      best = x > best ? x : best;
    }
    return fold_one(*team, best, Larger());
  }

  template <int N, class F>
  __device__ void sum(int64_t n, F f, Acc (&sums)[N]) const {
    for (int k = 0; k < N; ++k) sums[k] = 0;
#pragma unroll 1
    for (int64_t c = team->rank(); c < n; c += team->size()) {
      Acc terms[N];
      f(c, terms);
      for (int k = 0; k < N; ++k) sums[k] += terms[k];
    }
    for (int k = 0; k < N; ++k) sums[k] = fold_one(*team, sums[k], Add());
  }

  template <class F>
  __device__ void blocks(int64_t n, F f) const {
#pragma unroll 1
    for (int64_t c = team->rank(); c < n; c += team->size()) f(c, std::integral_constant<int, 1>());
  }
};

// One row of a matrix, converted as it is read. E: what it is, or Any, if that is known only now.
struct Any;

template <class Acc, class E>
struct Values {
  const E* data = nullptr;
  __device__ Values(const Matrix& m, int64_t row) {
    if (m.data) data = static_cast<const E*>(m.data) + row * m.stride;
  }
  __device__ Acc operator()(int64_t c) const { return Acc(widened(data[c])); }
};

template <class Acc>
struct Values<Acc, Any> {
  const void* data = nullptr;
  ScalarType dtype;
  __device__ Values(const Matrix& m, int64_t row) : dtype(m.dtype) {
    if (m.data) data = static_cast<const char*>(m.data) + row * m.stride * size_of(dtype);
  }
  __device__ Acc operator()(int64_t c) const {
    if (dtype == ScalarType::Double) return Acc(static_cast<const double*>(data)[c]);
    if (dtype == ScalarType::Float) return Acc(static_cast<const float*>(data)[c]);
    if (dtype == ScalarType::Half) return Acc(widened(static_cast<const Half*>(data)[c]));
    return Acc(widened(static_cast<const BFloat16*>(data)[c]));
  }
};

template <class E, class Acc>
__device__ void put(void* to, int64_t i, ScalarType dtype, Acc x) {
  if constexpr (!std::is_same_v<E, Any>) {
    narrow(float(x), static_cast<E*>(to) + i);
  } else if (dtype == ScalarType::Double) {
    static_cast<double*>(to)[i] = double(x);
  } else if (dtype == ScalarType::Float) {
    static_cast<float*>(to)[i] = float(x);
  } else if (dtype == ScalarType::Half) {
    narrow(float(x), static_cast<Half*>(to) + i);
  } else {
    narrow(float(x), static_cast<BFloat16*>(to) + i);
  }
}

template <class E, class Acc, class Team>
__device__ void student_row(const Job& job, int64_t row, const Acc* s, Acc share, bool is_b, void* to, Team& team) {
  const Problem& p = job.p;
  const auto teacher = shifted<Acc>(Values<Acc, E>(p.teacher, row), s[kMaxT]);
  const auto x = shifted<Acc>(Values<Acc, E>(is_b ? p.b : p.a, row), s[is_b ? kMaxB : kMaxA]);
  const auto other = shifted<Acc>(Values<Acc, E>(is_b ? p.a : p.b, row), s[is_b ? kMaxA : kMaxB]);
  const auto y = target_of<Acc>(p, row, Values<Acc, Any>(p.target, row));
  StudentScales<Acc> scales = student_scales<Acc>(p, row, s, share, is_b);
  const Acc inverse = Acc(1 / p.temperature), inverse_peer = Acc(1 / p.peer_temperature);
  const Strided<Acc, Team> strided{&team};
  if (std::is_same_v<E, Any> && share != 0 && scales.has_peer && scales.as_target)
    scales.kl_as_target =
        plain_divergence<Acc>(strided, p.classes, x, other, inverse_peer, s[is_b ? kSumPeerB : kSumPeerA],
                              s[is_b ? kSumPeerA : kSumPeerB], scales.kl_as_target);
  strided.blocks(p.classes, [=](int64_t c, auto width) {
    Acc g = 0;
    if (share != 0) student_gradient<Acc>(&g, c, width, scales, x, teacher, other, y, inverse, inverse_peer);
    put<E>(to, row * p.classes + c, p.a.dtype, g);
  });
}

template <class E, class Acc, class Team>
__device__ void teacher_row(const Job& job, int64_t row, const Acc* s, Acc share, Team& team) {
  const Problem& p = job.p;
  const auto teacher = shifted<Acc>(Values<Acc, E>(p.teacher, row), s[kMaxT]),
             a = shifted<Acc>(Values<Acc, E>(p.a, row), s[kMaxA]), b = shifted<Acc>(Values<Acc, E>(p.b, row), s[kMaxB]);
  const Acc inverse = Acc(1 / p.temperature);
  const bool flows = p.has_kd() && share != 0;
  const Acc scale = flows ? share * value<Acc>(p.kd, row) * s[kWeight] * Acc(p.temperature) : Acc(0);
  const Strided<Acc, Team> strided{&team};
  Acc kl_a = 0, kl_b = 0;
  if (flows) kl_a = plain_divergence<Acc>(strided, p.classes, teacher, a, inverse, s[kSumT], s[kSumA], s[kKlTA]);
  if (flows && p.b) kl_b = plain_divergence<Acc>(strided, p.classes, teacher, b, inverse, s[kSumT], s[kSumB], s[kKlTB]);
  strided.blocks(p.classes, [=](int64_t c, auto) {
    Acc g = flows ? teacher_gradient<Acc>(c, teacher, a, inverse, s[kSumT], s[kSumA], kl_a, scale) : Acc(0);
    if (flows && p.b) g += teacher_gradient<Acc>(c, teacher, b, inverse, s[kSumT], s[kSumB], kl_b, scale);
    put<E>(job.to_teacher, row * p.classes + c, p.teacher.dtype, g);
  });
}

// share: of the loss, times grad_output; 0 for a row that counts for nothing.
template <class E, class Acc, class Team>
__device__ void gradients_of_row(const Job& job, int64_t row, const Acc* s, Acc share, Team& team) {
  if (std::is_same_v<E, Any> && job.to_teacher) teacher_row<E, Acc>(job, row, s, share, team);
#pragma unroll 1
  for (int which = 0; which < 2; ++which)
    if (void* const to = which ? job.to_b : job.to_a) student_row<E, Acc>(job, row, s, share, which == 1, to, team);
}

template <class E, class Acc, class Team>
__device__ void statistics_of_row(const Job& job, int64_t row, Team& team, Acc* out) {
  const Problem& p = job.p;
  const Strided<Acc, Team> strided{&team};
  const Values<Acc, E> teacher(p.teacher, row), a(p.a, row), b(p.b, row);
  const Values<Acc, Any> target(p.target, row);
  for (int k = 0; k < kColumns; ++k) out[k] = 0;
  if (p.teacher) out[kMaxT] = strided.max(p.classes, teacher);
  out[kMaxA] = strided.max(p.classes, a);
  if (p.b) out[kMaxB] = strided.max(p.classes, b);
  row_statistics<Acc>(strided, p, row, shifted<Acc>(teacher, out[kMaxT]), shifted<Acc>(a, out[kMaxA]),
                      shifted<Acc>(b, out[kMaxB]), target_of<Acc>(p, row, target), out);
}

// A function of its own, so that its registers are not those of the loop that it is seldom called from.
template <class E, class Acc, class Team>
__device__ __noinline__ void careful_row(const Job& job, int64_t row, Team& team, Acc share, Acc* out) {
  team.sync();  // what the loop has written is to be overwritten
  statistics_of_row<E, Acc>(job, row, team, out);
  out[kShare] = share;
  if (job.gradients()) gradients_of_row<E, Acc>(job, row, out, share, team);
}

}  // namespace udskd::cuda
