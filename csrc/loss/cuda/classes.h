// What is computed from the classes of one packet once a row's sums are known, in float: divergences and gradients.
#pragma once

#include "job.h"
#include "row_cache.h"

namespace udskd::cuda {

// One row's numbers, from what is saved of it.
struct RowScales {
  float shift_t, shift_a, shift_b;  // the largest logits * k
  float over_t, over_a, over_b;     // 1 / sums at the temperature,
  float over_pa, over_pb;           // at the peer temperature
  float gap_ta, gap_tb, gap_ab;     // log2 of the ratios of the sums: log2(p / q) = s_p - s_q + gap
  float one_a, one_b, target;       // factors of the exponentials at 1, of y,
  float kd, peer;                   // of q - p
  int label;                        // -1 without one
};

struct Divergences {
  float ta = 0, tb = 0, ab = 0, ba = 0;  // sum of p log2(p / q)
  // Sum of q - p: 0 but for the error of the normalisers, which it takes out of the divergences to first order.
  float less_ta = 0, less_tb = 0, less_ab = 0;
};

// s and 2^s of a packet's logits.
template <class E>
__device__ void exponentials(const Packet<E>& packet, float k, float shift, float* s, float* e) {
  widen(packet, s);
#pragma unroll
  for (int v = 0; v < kCount<E>; ++v) s[v] = fmaf(s[v], k, -shift), e[v] = exp2_fast(s[v]);
}

// 2^(ratio s), from e = 2^s by squaring it so many times where that is possible.
template <int kClasses>
__device__ void raise(const float* s, const float* e, int squarings, float ratio, float* to) {
#pragma unroll
  for (int v = 0; v < kClasses; ++v) {
    to[v] = e[v];
    if (squarings > 0) to[v] *= to[v];
    if (squarings > 1) to[v] *= to[v];
    if (squarings > 2) to[v] *= to[v];
  }
  if (squarings >= 0) return;
#pragma unroll
  for (int v = 0; v < kClasses; ++v) to[v] = exp2_fast(s[v] * ratio);
}

// A row's target for classes from c on, where it is a distribution. Not inlined where classes are unrolled.
template <int kClasses>
__device__ __noinline__ void targets(const Job& job, int64_t row, int label, int c, float* to) {
  const Matrix& y = job.p.target;
#pragma unroll 1
  for (int v = 0; v < kClasses; ++v) {
    const int64_t at = row * y.stride + c + v;
    const bool inside = unsigned(c + v) < unsigned(job.p.classes);
    float mass = c + v == label;
    if (inside && y) {
      if (y.dtype == ScalarType::Float) {
        mass = static_cast<const float*>(y.data)[at];
      } else if (y.dtype == ScalarType::BFloat16) {
        mass = widened(static_cast<const BFloat16*>(y.data)[at]);
      } else if (y.dtype == ScalarType::Half) {
        mass = widened(static_cast<const Half*>(y.data)[at]);
      } else {
        mass = float(static_cast<const double*>(y.data)[at]);
      }
    }
    to[v] = inside ? fmaf(mass, job.scales.keep, job.scales.floor) : 0.f;
  }
}

template <class E, bool kUsual>
class Visit {
 public:
  static constexpr int kClasses = kCount<E>;

  // The students' distributions at the temperature.
  __device__ Visit(const Job& job, const RowScales& r, int64_t row, int c, const Three<E>& x)
      : job_(job), has_{job}, r_(r), row_(row), c_(c) {
    exponentials(x.a, job.scales.k, r.shift_a, sa_, qa_);
    if (has_.two()) exponentials(x.b, job.scales.k, r.shift_b, sb_, qb_);
  }

  __device__ void cross_entropy() {
    raise<kClasses>(sa_, qa_, job_.scales.one, job_.scales.to_one, ga_);
    if (has_.two()) raise<kClasses>(sb_, qb_, job_.scales.one, job_.scales.to_one, gb_);
#pragma unroll
    for (int v = 0; v < kClasses; ++v) ga_[v] *= r_.one_a, gb_[v] *= r_.one_b;
  }

  __device__ void normalise() {
#pragma unroll
    for (int v = 0; v < kClasses; ++v) qa_[v] *= r_.over_a, qb_[v] *= r_.over_b;
  }

  template <bool kLoss>
  __device__ void teacher(const Packet<E>& t, Divergences& sum) {
    float st[kClasses], p[kClasses];
    exponentials(t, job_.scales.teacher_k, r_.shift_t, st, p);
#pragma unroll
    for (int v = 0; v < kClasses; ++v) {
      p[v] *= r_.over_t;
      student<kLoss>(st[v], p[v], sa_[v], qa_[v], r_.gap_ta, ga_[v], sum.ta, sum.less_ta);
    }
    if (!has_.two()) return;
#pragma unroll
    for (int v = 0; v < kClasses; ++v)
      student<kLoss>(st[v], p[v], sb_[v], qb_[v], r_.gap_tb, gb_[v], sum.tb, sum.less_tb);
  }

  template <bool kLoss>
  __device__ void peers(Divergences& sum) {
    if (has_.other_peers()) other_temperature();
#pragma unroll
    for (int v = 0; v < kClasses; ++v) {
      const float less = qb_[v] - qa_[v];
      ga_[v] = fmaf(-r_.peer, less, ga_[v]), gb_[v] = fmaf(r_.peer, less, gb_[v]);
      if (!kLoss) continue;
      const float d = sa_[v] - sb_[v] + r_.gap_ab;
      sum.ab = fmaf(qa_[v], d, sum.ab), sum.ba = fmaf(-qb_[v], d, sum.ba), sum.less_ab += less;
    }
  }

  // The last to be added, so that 16-bit gradients are rounded once.
  __device__ void target() {
    if (has_.soft()) {
      float y[kClasses];
      targets<kClasses>(job_, row_, r_.label, c_, y);
#pragma unroll
      for (int v = 0; v < kClasses; ++v)
        ga_[v] = fmaf(-r_.target, y[v], ga_[v]), gb_[v] = fmaf(-r_.target, y[v], gb_[v]);
    } else if (unsigned(r_.label - c_) < unsigned(kClasses)) {
#pragma unroll
      for (int v = 0; v < kClasses; ++v)
        if (r_.label == c_ + v) ga_[v] -= r_.target, gb_[v] -= r_.target;
    }
  }

  __device__ void store(E* to_a, E* to_b) const {
    if (to_a) write(to_a, c_, int(job_.p.classes), ga_);
    if (to_b) write(to_b, c_, int(job_.p.classes), gb_);
  }

 private:
  const Job& job_;
  const Has<kUsual> has_;
  const RowScales& r_;
  int64_t row_;
  int c_;
  float sa_[kClasses] = {}, qa_[kClasses] = {}, sb_[kClasses] = {}, qb_[kClasses] = {};
  float ga_[kClasses] = {}, gb_[kClasses] = {};  // gradients

  template <bool kLoss>
  __device__ void student(float st, float p, float s, float q, float gap, float& g, float& kl, float& all_less) {
    const float less = q - p;
    g = fmaf(r_.kd, less, g);
    if (kLoss) kl = fmaf(p, st - s + gap, kl), all_less += less;
  }

  __device__ void other_temperature() {
    const float ratio = job_.scales.to_peer;
#pragma unroll
    for (int v = 0; v < kClasses; ++v) {
      sa_[v] *= ratio, sb_[v] *= ratio;
      qa_[v] = exp2_fast(sa_[v]) * r_.over_pa, qb_[v] = exp2_fast(sb_[v]) * r_.over_pb;
    }
  }
};

// Divergences and gradients of a packet's classes.
template <bool kLoss, bool kUsual, class E>
__device__ void visit(const Job& job, const RowScales& r, int64_t row, int c, const Three<E>& x, E* to_a, E* to_b,
                      Divergences& sum) {
  Visit<E, kUsual> now(job, r, row, c, x);
  const Has<kUsual> has{job};
  const bool gradients = to_a || to_b;
  if (gradients && has.ce()) now.cross_entropy();
  now.normalise();
  if (has.kd()) now.template teacher<kLoss>(x.t, sum);
  if (has.peers()) now.template peers<kLoss>(sum);
  if (!gradients) return;
  if (has.ce()) now.target();
  now.store(to_a, to_b);
}

// p log(p / q) + q - p of one class, in nats, d = log(p / q). It is never negative; small d: p (e^-d - 1 + d) by its
// series, in which q - p is not formed.
__device__ inline float finite_excess(float p, float q, float d) {
  const float series = d * d * (1.f / 2 - d * (1.f / 6 - d * (1.f / 24 - d * (1.f / 120 - d * (1.f / 720)))));
  return fabsf(d) < 0.0625f ? p * series : p * d + (q - p);
}

// The divergences as sums of terms none of which is negative: for distributions so near that the rounding of p and q,
// which visit() subtracts, would be seen. In nats; less_ta and the like are not used.
template <bool kUsual, class E>
__device__ void visit_precisely(const Job& job, const RowScales& r, const Three<E>& x, Divergences& sum) {
  constexpr int kClasses = kCount<E>;
  const Has<kUsual> has{job};
  constexpr float kNats = float(kLn2);
  float st[kClasses], et[kClasses], sa[kClasses], ea[kClasses], sb[kClasses] = {}, eb[kClasses] = {};
  exponentials(x.a, job.scales.k, r.shift_a, sa, ea);
  if (has.two()) exponentials(x.b, job.scales.k, r.shift_b, sb, eb);
  if (has.kd()) exponentials(x.t, job.scales.teacher_k, r.shift_t, st, et);
#pragma unroll
  for (int v = 0; v < kClasses; ++v) {
    float qa = ea[v] * r.over_a, qb = eb[v] * r.over_b, d = sa[v] - sb[v];
    if (has.kd()) {
      const float p = et[v] * r.over_t;
      sum.ta += finite_excess(p, qa, (st[v] - sa[v] + r.gap_ta) * kNats);
      if (has.two()) sum.tb += finite_excess(p, qb, (st[v] - sb[v] + r.gap_tb) * kNats);
    }
    if (has.other_peers()) {
      d *= job.scales.to_peer;
      qa = exp2_fast(sa[v] * job.scales.to_peer) * r.over_pa, qb = exp2_fast(sb[v] * job.scales.to_peer) * r.over_pb;
    }
    if (!has.peers()) continue;
    d = (d + r.gap_ab) * kNats;
    sum.ab += finite_excess(qa, qb, d), sum.ba += finite_excess(qb, qa, -d);
  }
}

}  // namespace udskd::cuda
