// One row, by one team, in float: maxima, sums, weight, cross-entropies, divergences and gradients, in three visits of
// its logits. What only some losses need, or networks that nearly agree, is a visit more, and one of memory, so that
// only the three are unrolled where logits are in registers.
#pragma once

#include "../../common/cuda/thread_group.h"
#include "classes.h"
#include "scalars.h"

namespace udskd::cuda {

// log sum_c e^x(c), x shifted as s is; rest: the sum without the largest class, whose s is top. Where most of the sum
// is that class's, adding the rest to it class by class has rounded much of the rest away.
__device__ __noinline__ inline float log_sum(const Scales& scales, float sum, float rest, float top) {
  if (!(sum < 1.5f)) return logf(sum);
  return log1pf(rest * reciprocal(exp2_fast(top * scales.to_one))) + top * scales.to_nats;
}

template <class E, class Team, class Store, bool kUsual>
class RowPass {
 public:
  __device__ RowPass(const Job& job, Team& team, Store& store)
      : job_(job), p_(job.p), has_{job}, team_(team), store_(store) {}

  // Fills the columns; false if something is not finite, and the row has to be done with care.
  __device__ bool run(int64_t row, float share, float (&out)[kColumns]);

 private:
  static constexpr int kClasses = kCount<E>;
  const Job& job_;
  const Problem& p_;
  const Has<kUsual> has_;
  Team& team_;
  Store& store_;
  int64_t row_ = 0;
  int label_ = -1;
  float top_t_ = 0, top_a_ = 0, top_b_ = 0;  // s of the largest logits: 0 but for rounding
  float spread_ = 1, moment_ = 0;            // sums of the teacher's e at the uncertainty's temperature, and of s e
  float rest_a_ = 0, rest_b_ = 0;            // sums at 1 without the largest

  __device__ Row<E> place() const;
  __device__ bool load(float (&out)[kColumns]);
  __device__ void add_up(float (&out)[kColumns]);
  __device__ void add_up_peers(float (&out)[kColumns]);
  __device__ float weigh(float (&out)[kColumns]);
  __device__ float runner_up(float largest);
  __device__ void cross_entropies(float (&out)[kColumns]);
  __device__ void diverge(float share, float (&out)[kColumns]);

  template <class F>
  __device__ void seldom_each(F f) const {
    if constexpr (Store::kUnrolled) {
      each_in_memory(place(), team_, f);
    } else {
      store_.each(f);
    }
  }
  __device__ const E* at(const Matrix& m) const {
    return m ? static_cast<const E*>(m.data) + row_ * m.stride : nullptr;
  }
  __device__ E* gradient(void* to) const { return to ? static_cast<E*>(to) + row_ * p_.classes : nullptr; }
};

#define STEP                                               \
  template <class E, class Team, class Store, bool kUsual> \
  __device__

STEP Row<E> RowPass<E, Team, Store, kUsual>::place() const {
  Row<E> row;
  row.t = at(p_.teacher), row.a = at(p_.a), row.b = at(p_.b), row.classes = int(p_.classes);
  row.align(job_.to_a ? gradient(job_.to_a) : job_.to_b ? gradient(job_.to_b) : row.a);
  return row;
}

// False if a maximum is not among the numbers that kOutside is below.
STEP bool RowPass<E, Team, Store, kUsual>::load(float (&out)[kColumns]) {
  float maxima[3] = {kOutside, kOutside, kOutside};
  store_.load(place(), team_, maxima);
  team_.reduce(maxima, Larger());
  if (!has_.teacher()) maxima[0] = 0;  // a network that is not there has no largest logit, and none too small either
  if (!has_.two()) maxima[2] = 0;
  out[kMaxT] = maxima[0], out[kMaxA] = maxima[1], out[kMaxB] = maxima[2];
  top_t_ = fmaf(maxima[0], job_.scales.teacher_k, -(maxima[0] * job_.scales.teacher_k));
  top_a_ = fmaf(maxima[1], job_.scales.k, -(maxima[1] * job_.scales.k));
  top_b_ = fmaf(maxima[2], job_.scales.k, -(maxima[2] * job_.scales.k));
  return maxima[0] > kOutside && maxima[1] > kOutside && maxima[2] > kOutside;
}

STEP void RowPass<E, Team, Store, kUsual>::add_up(float (&out)[kColumns]) {
  const float k = job_.scales.k, teacher_k = job_.scales.teacher_k;
  const float shift_t = out[kMaxT] * teacher_k, shift_a = out[kMaxA] * k, shift_b = out[kMaxB] * k;
  float sums[9] = {};
  const auto student = [&](const Packet<E>& x, float largest, float shift, float* to) {
    float logits[kClasses], s[kClasses], e[kClasses], one[kClasses];
    widen(x, logits), exponentials(x, k, shift, s, e);
    raise<kClasses>(s, e, job_.scales.one, job_.scales.to_one, one);
#pragma unroll
    for (int v = 0; v < kClasses; ++v) {
      to[0] += e[v], to[1] += one[v];
      if (logits[v] < largest) to[2] += one[v];
    }
  };
  store_.each([&](int, const Three<E>& x) {
    if (has_.teacher()) {
      float s[kClasses], e[kClasses], raised[kClasses];
      exponentials(x.t, teacher_k, shift_t, s, e);
      raise<kClasses>(s, e, job_.scales.spread, job_.scales.to_spread, raised);
#pragma unroll
      for (int v = 0; v < kClasses; ++v)
        sums[0] += e[v], sums[1] += raised[v], sums[2] = fmaf(raised[v], s[v], sums[2]);
    }
    student(x.a, out[kMaxA], shift_a, sums + 3);
    if (has_.two()) student(x.b, out[kMaxB], shift_b, sums + 6);
  });
  team_.reduce(sums, Add());
  out[kSumT] = sums[0], spread_ = sums[1], moment_ = sums[2];
  out[kSumA] = out[kSumPeerA] = sums[3], out[kSumOneA] = sums[4], rest_a_ = sums[5];
  out[kSumB] = out[kSumPeerB] = sums[6], out[kSumOneB] = sums[7], rest_b_ = sums[8];
}

STEP void RowPass<E, Team, Store, kUsual>::add_up_peers(float (&out)[kColumns]) {
  const float k = job_.scales.k, shift_a = out[kMaxA] * k, shift_b = out[kMaxB] * k;
  float sums[2] = {};
  seldom_each([&](int, const Three<E>& x) {
    float sa[kClasses], sb[kClasses], unused[kClasses];
    exponentials(x.a, k, shift_a, sa, unused), exponentials(x.b, k, shift_b, sb, unused);
#pragma unroll
    for (int v = 0; v < kClasses; ++v) {
      sums[0] += exp2_fast(sa[v] * job_.scales.to_peer), sums[1] += exp2_fast(sb[v] * job_.scales.to_peer);
    }
  });
  team_.reduce(sums, Add());
  out[kSumPeerA] = sums[0], out[kSumPeerB] = sums[1];
}

// The teacher's second largest logit; its largest if there are two of it.
STEP float RowPass<E, Team, Store, kUsual>::runner_up(float largest) {
  float next[1] = {kOutside}, ties[1] = {0};
  seldom_each([&](int, const Three<E>& x) {
    float t[kClasses];
    widen(x.t, t);
#pragma unroll
    for (int v = 0; v < kClasses; ++v) {
      ties[0] += t[v] == largest ? 1.f : 0.f;
      next[0] = fmaxf(next[0], t[v] < largest ? t[v] : kOutside);
    }
  });
  team_.reduce(next, Larger()), team_.reduce(ties, Add());
  return ties[0] > 1 ? largest : next[0];
}

// How sure the teacher is, and the weight that follows.
STEP float RowPass<E, Team, Store, kUsual>::weigh(float (&out)[kColumns]) {
  Spread<float> spread{};
  const float to_spread = job_.scales.to_spread, over = reciprocal(spread_);
  spread.entropy = logf(spread_) - float(kLn2) * to_spread * moment_ * over;
  spread.largest = spread.second = exp2_fast(top_t_ * to_spread) * over;
  if (has_.margin()) {
    const float next = runner_up(out[kMaxT]), shift = out[kMaxT] * job_.scales.teacher_k;
    spread.second = exp2_fast(fmaf(next, job_.scales.teacher_k, -shift) * to_spread) * over;
  }
  out[kEntropy] = spread.entropy;
  return certainty<float>(p_, row_, spread, job_.scales.log_classes);
}

// -sum_c y(c) log p(c) = mass log sum_c e^x(c) - sum_c y(c) x(c)
STEP void RowPass<E, Team, Store, kUsual>::cross_entropies(float (&out)[kColumns]) {
  const float k = job_.scales.k, shift_a = out[kMaxA] * k, shift_b = out[kMaxB] * k;
  float sums[3] = {1, 0, 0};  // the target's mass, and its sums of s
  if (has_.soft()) {
    sums[0] = 0;
    seldom_each([&](int c, const Three<E>& x) {
      float sa[kClasses], sb[kClasses] = {}, y[kClasses], unused[kClasses];
      exponentials(x.a, k, shift_a, sa, unused);
      if (has_.two()) exponentials(x.b, k, shift_b, sb, unused);
      targets<kClasses>(job_, row_, label_, c, y);
#pragma unroll
      for (int v = 0; v < kClasses; ++v)
        sums[0] += y[v], sums[1] = fmaf(y[v], sa[v], sums[1]), sums[2] = fmaf(y[v], sb[v], sums[2]);
    });
    team_.reduce(sums, Add());
    if (label_ >= 0) sums[0] = 1;
  } else {
    sums[1] = fmaf(widened(at(p_.a)[label_]), k, -shift_a);
    if (has_.two()) sums[2] = fmaf(widened(at(p_.b)[label_]), k, -shift_b);
  }
  out[kTargetMass] = sums[0];
  const float to_nats = job_.scales.to_nats;
  out[kCeA] = sums[0] * log_sum(job_.scales, out[kSumOneA], rest_a_, top_a_) - to_nats * sums[1];
  if (has_.two()) out[kCeB] = sums[0] * log_sum(job_.scales, out[kSumOneB], rest_b_, top_b_) - to_nats * sums[2];
}

STEP void RowPass<E, Team, Store, kUsual>::diverge(float share, float (&out)[kColumns]) {
  RowScales r = row_scales(job_, row_, label_, out, share);
  if (!Store::kKeeps) r.shift_t = opaque(r.shift_t), r.shift_a = opaque(r.shift_a), r.shift_b = opaque(r.shift_b);
  E *const to_a = gradient(job_.to_a), *const to_b = gradient(job_.to_b);
  Divergences sum;
  store_.each([&](int c, const Three<E>& x) { visit<true, kUsual>(job_, r, row_, c, x, to_a, to_b, sum); });
  constexpr float kNats = float(kLn2), kNear = 1.f / 128;
  float kl[4] = {fmaf(sum.ta, kNats, sum.less_ta), fmaf(sum.tb, kNats, sum.less_tb), fmaf(sum.ab, kNats, sum.less_ab),
                 fmaf(sum.ba, kNats, -sum.less_ab)};
  team_.reduce(kl, Add());
  const bool near = (has_.kd() && (kl[0] < kNear || (has_.two() && kl[1] < kNear))) ||
                    (has_.peers() && (kl[2] < kNear || kl[3] < kNear));
  if (near) {
    Divergences again;
    seldom_each([&](int, const Three<E>& x) { visit_precisely<kUsual>(job_, r, x, again); });
    kl[0] = again.ta, kl[1] = again.tb, kl[2] = again.ab, kl[3] = again.ba;
    team_.reduce(kl, Add());
  }
  out[kKlTA] = not_negative(kl[0]), out[kKlTB] = not_negative(kl[1]);
  out[kKlAB] = not_negative(kl[2]), out[kKlBA] = not_negative(kl[3]);
}

STEP bool RowPass<E, Team, Store, kUsual>::run(int64_t row, float share, float (&out)[kColumns]) {
  row_ = row, label_ = -1;
  if (p_.labels) {
    const int64_t label = p_.labels[row];
    if (label < 0 || label >= p_.classes) return false;
    label_ = int(label);
  }
  if (!load(out)) return false;
  add_up(out);
  if (has_.other_peers()) add_up_peers(out);
  out[kWeight] = has_.teacher() ? weigh(out) : 1.f;
  if (has_.ce()) cross_entropies(out);
  diverge(share, out);
  const float seen = out[kKlTA] + out[kKlTB] + out[kKlAB] + out[kKlBA] + out[kEntropy] + out[kCeA] + out[kCeB];
  return seen - seen == 0;
}

#undef STEP

}  // namespace udskd::cuda
