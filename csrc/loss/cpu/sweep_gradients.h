// The sweeps after the sums are known: divergences and gradients.
#pragma once

#include <cstdint>
#include <type_traits>

#include "sweeps.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

// One row in scratch, and the numbers that its gradients are made of. Null for what is not there.
template <class Acc>
struct Row {
  const Acc *st, *et;                            // the teacher: s and 2^s at T
  const Acc *sa, *ea, *pa, *oa;                  // student a: s and 2^s at the base temperature, 2^s at tau, at 1
  const Acc *sb, *eb, *pb, *ob;                  // student b
  const Acc* y;                                  // the target as a distribution, or null
  int64_t label;                                 // or a label, or -1
  Acc over_t, over_a, over_b, over_pa, over_pb;  // 1 / sums at T and tau
  Acc gap_ta, gap_tb, gap_ab;                    // log2 of the ratios of the sums: log2(p / q) = s_p - s_q + gap
  Acc peer_ratio;                                // s at tau = peer_ratio * s
  bool streaming;                                // gradients past the cache
  Acc one_a, one_b, target, kd, peer;            // scales of the exponentials at 1, of y, of q - p at T and tau
};

// A copy, field by field: gradients are stored between its uses, and the compiler cannot know that they are not in the
// row itself; and a copy as a whole would wait for the single fields that were just written.
template <class Acc>
struct Local : Row<Acc> {
  INLINE explicit Local(const Row<Acc>& r) {
    this->st = r.st, this->et = r.et, this->sa = r.sa, this->ea = r.ea, this->pa = r.pa, this->oa = r.oa;
    this->sb = r.sb, this->eb = r.eb, this->pb = r.pb, this->ob = r.ob, this->y = r.y, this->label = r.label;
    this->over_t = r.over_t, this->over_a = r.over_a, this->over_b = r.over_b;
    this->over_pa = r.over_pa, this->over_pb = r.over_pb;
    this->gap_ta = r.gap_ta, this->gap_tb = r.gap_tb, this->gap_ab = r.gap_ab, this->peer_ratio = r.peer_ratio;
    this->streaming = r.streaming, this->one_a = r.one_a, this->one_b = r.one_b, this->target = r.target;
    this->kd = r.kd, this->peer = r.peer;
  }
};

template <class Acc>
struct Divergences {
  Acc ta, tb, ab, ba;  // KL(teacher || a), KL(teacher || b), KL(a || b), KL(b || a), in nats
  INLINE void operator+=(const Divergences& x) { ta += x.ta, tb += x.tb, ab += x.ab, ba += x.ba; }
};

constexpr double kLn2 = 0.693147180559945309417;
constexpr int64_t kFetch = 128;  // classes by which memory to be written is asked for ahead

// KL(p || q) = sum p log(p / q) + q - p. The last two add up to 0 but for the error of the normalisers, which they
// take out to first order. One: the power of 2^s that is at 1, or 0 to read it from scratch.
template <class Acc, bool Kd, bool Two, int Peer, int One, bool Grad, class Out>
Divergences<Acc> divergences_and_gradients(const Row<Acc>& row, Out* to_a, Out* to_b, Span span, Ahead ahead) {
  constexpr int kCount = Lanes<Acc>::kCount;
  const Local<Acc> r(row);
  const Vector<Acc> zero = all<Acc>(0);
  Vector<Acc> ta = zero, tb = zero, ab = zero, ba = zero, mass_ta = zero, mass_tb = zero, mass_ab = zero;
  const auto step = [&](int64_t c, auto special, auto fresh) __attribute__((always_inline)) {
    Vector<Acc> grad_a = zero, grad_b = zero, eb = zero, sb = zero;
    const Vector<Acc> sa = load<Acc>(r.sa + c), ea = load<Acc>(r.ea + c);
    if constexpr (Two) sb = load<Acc>(r.sb + c), eb = load<Acc>(r.eb + c);
    if constexpr (Grad) {
      grad_a = (One ? power<One>(ea) : load<Acc>(r.oa + c)) * r.one_a;
      if constexpr (Two) grad_b = (One ? power<One>(eb) : load<Acc>(r.ob + c)) * r.one_b;
      if (r.y) {
        const Vector<Acc> y = load<Acc>(r.y + c) * r.target;
        grad_a -= y, grad_b -= y;
      } else if (special && r.label - c < kCount && r.label >= c) {
        Acc y[kCount] = {};
        y[r.label - c] = r.target;
        grad_a -= load<Acc>(y), grad_b -= load<Acc>(y);
      }
    }
    const Vector<Acc> qa = ea * r.over_a, qb = eb * r.over_b;
    if constexpr (Kd) {
      const Vector<Acc> st = load<Acc>(r.st + c), p = load<Acc>(r.et + c) * r.over_t, less_a = qa - p;
      ta += fresh(p * ((st - sa) + r.gap_ta)), mass_ta += fresh(less_a);
      if constexpr (Grad) grad_a += r.kd * less_a;
      if constexpr (Two) {
        const Vector<Acc> less_b = qb - p;
        tb += fresh(p * ((st - sb) + r.gap_tb)), mass_tb += fresh(less_b);
        if constexpr (Grad) grad_b += r.kd * less_b;
      }
    }
    if constexpr (Peer > 0) {
      Vector<Acc> pa = qa, pb = qb, d = sa - sb;
      if constexpr (Peer == 2) {
        pa = load<Acc>(r.pa + c) * r.over_pa, pb = load<Acc>(r.pb + c) * r.over_pb;
        d = d * r.peer_ratio;
      }
      d += r.gap_ab;
      const Vector<Acc> less = pb - pa;
      ab += fresh(pa * d), ba -= fresh(pb * d), mass_ab += fresh(less);
      if constexpr (Grad) grad_a -= r.peer * less, grad_b += r.peer * less;
    }
    if constexpr (Grad) {
      const bool streaming = !special && r.streaming;
      if (to_a) write_numbers<Acc>(to_a + c, grad_a, streaming);
      if (to_b) write_numbers<Acc>(to_b + c, grad_b, streaming);
    }
  };
  // The vectors that overlap and the one with the label take the longer way.
  const auto keep = [](Vector<Acc> x) __attribute__((always_inline)) { return x; };
  if (span.head)
    step(span.begin, std::true_type(),
         [&](Vector<Acc> x) __attribute__((always_inline)) { return first<Acc>(span.head, x); });
  int64_t c = span.begin + span.head;
  const int64_t end = span.end();
  const int64_t whole = c + (end - c) / kCount * kCount, labelled = r.label - (r.label - c) % kCount;
  const bool mine = r.label >= c && labelled < whole;
  for (const int64_t stop : {mine ? labelled : whole, whole}) {
    for (; c < stop; c += kCount) {
      ahead.fetch(c);
      if (Grad && !r.streaming) __builtin_prefetch(to_a + c + kFetch, 1), __builtin_prefetch(to_b + c + kFetch, 1);
      step(c, std::false_type(), keep);
    }
    if (c >= end) break;
    const int64_t count = end - c < kCount ? end - c : kCount;
    step(c + count - kCount, std::true_type(),
         [=](Vector<Acc> x) __attribute__((always_inline)) { return last<Acc>(count, x); });
    c += count;
  }
  const Acc ln2 = Acc(kLn2);
  return {Kd ? sum_of<Acc>(ta * ln2 + mass_ta) : 0, Kd && Two ? sum_of<Acc>(tb * ln2 + mass_tb) : 0,
          Peer ? sum_of<Acc>(ab * ln2 + mass_ab) : 0, Peer ? sum_of<Acc>(ba * ln2 - mass_ab) : 0};
}

// p log(p / q) + q - p of one class, d = log(p / q). It is never negative; small d: p (e^-d - 1 + d) by its series, in
// which q - p is not formed.
template <class Acc>
INLINE Vector<Acc> excess(Vector<Acc> p, Vector<Acc> q, Vector<Acc> d) {
  const Vector<Acc> series =
      d * d * (Acc(1. / 2) - d * (Acc(1. / 6) - d * (Acc(1. / 24) - d * (Acc(1. / 120) - d * Acc(1. / 720)))));
  const Acc near = Acc(sizeof(Acc) == 4 ? 0.0625 : 0.0009765625);  // beyond it, the series' remainder is seen
  const Vector<Acc> far = p * d + (q - p);
  return d < near ? (d > -near ? p * series : far) : far;
}

// The divergences again, as sums of terms none of which is negative: for distributions so near that the rounding of p
// and q, which divergences_and_gradients subtracts, would be seen.
template <class Acc>
Divergences<Acc> precise_divergences(const Row<Acc>& r, bool kd, bool two, int peer, Span span) {
  Vector<Acc> ta = all<Acc>(0), tb = ta, ab = ta, ba = ta;
  const Acc ln2 = Acc(kLn2);
  sweep<Acc>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> sa = load<Acc>(r.sa + c), qa = load<Acc>(r.ea + c) * r.over_a;
    const Vector<Acc> sb = load<Acc>(two ? r.sb + c : r.sa + c), qb = load<Acc>(two ? r.eb + c : r.ea + c) * r.over_b;
    if (kd) {
      const Vector<Acc> st = load<Acc>(r.st + c), p = load<Acc>(r.et + c) * r.over_t;
      ta += fresh(excess<Acc>(p, qa, ((st - sa) + r.gap_ta) * ln2));
      if (two) tb += fresh(excess<Acc>(p, qb, ((st - sb) + r.gap_tb) * ln2));
    }
    if (peer) {
      const Vector<Acc> pa = peer == 2 ? load<Acc>(r.pa + c) * r.over_pa : qa;
      const Vector<Acc> pb = peer == 2 ? load<Acc>(r.pb + c) * r.over_pb : qb;
      const Vector<Acc> d = ((sa - sb) * r.peer_ratio + r.gap_ab) * ln2;
      ab += fresh(excess<Acc>(pa, pb, d)), ba += fresh(excess<Acc>(pb, pa, -d));
    }
  });
  return {sum_of<Acc>(ta), sum_of<Acc>(tb), sum_of<Acc>(ab), sum_of<Acc>(ba)};
}

// p x, and 0 where p is 0 whatever x is.
template <class Acc>
INLINE Vector<Acc> mass_times(Vector<Acc> p, Vector<Acc> x) {
  return p == 0 ? Vector<Acc>{} : p * x;
}

// sum p log(p / q) as it is, for target_gradients: what is wrong with the normalisers in log(p / q) is then wrong in
// both and cancels.
template <class Acc>
Divergences<Acc> plain_divergences(const Row<Acc>& r, bool kd, bool two, int peer, Span span) {
  const Vector<Acc> zero = all<Acc>(0);
  Vector<Acc> ta = zero, tb = zero, ab = zero, ba = zero;
  sweep<Acc>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> sa = load<Acc>(r.sa + c), sb = two ? load<Acc>(r.sb + c) : sa;
    if (kd) {
      const Vector<Acc> st = load<Acc>(r.st + c), p = load<Acc>(r.et + c) * r.over_t;
      ta += fresh(p * ((st - sa) + r.gap_ta)), tb += fresh(p * ((st - sb) + r.gap_tb));
    }
    if (!peer) return;
    const Vector<Acc> d = (sa - sb) * r.peer_ratio + r.gap_ab;
    ab += fresh((peer == 2 ? load<Acc>(r.pa + c) * r.over_pa : load<Acc>(r.ea + c) * r.over_a) * d);
    ba -= fresh((peer == 2 ? load<Acc>(r.pb + c) * r.over_pb : load<Acc>(r.eb + c) * r.over_b) * d);
  });
  const Acc ln2 = Acc(kLn2);
  return {sum_of<Acc>(ta) * ln2, sum_of<Acc>(tb) * ln2, sum_of<Acc>(ab) * ln2, sum_of<Acc>(ba) * ln2};
}

// What flows into a divergence's first argument, for which the divergence must be known: to a teacher that learns, and
// between peers that are not detached. Added to the students' gradients, stored as the teacher's.
template <class Acc>
void target_gradients(const Row<Acc>& r, const Divergences<Acc>& kl, bool kd, bool two, int peer, Acc* to_t, Acc* to_a,
                      Acc* to_b, Span span) {
  const Acc ln2 = Acc(kLn2);
  sweep<Acc>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> sa = load<Acc>(r.sa + c), sb = two ? load<Acc>(r.sb + c) : sa;
    if (to_t) {
      Vector<Acc> flow{};
      if (kd) {
        const Vector<Acc> st = load<Acc>(r.st + c), p = load<Acc>(r.et + c) * r.over_t;
        flow = mass_times<Acc>(p, ((st - sa) + r.gap_ta) * ln2 - kl.ta);
        if (two) flow += mass_times<Acc>(p, ((st - sb) + r.gap_tb) * ln2 - kl.tb);
      }
      store<Acc>(to_t + c, flow * r.kd);
    }
    if (!peer) return;
    const Vector<Acc> d = ((sa - sb) * r.peer_ratio + r.gap_ab) * ln2;
    const Vector<Acc> pa = peer == 2 ? load<Acc>(r.pa + c) * r.over_pa : load<Acc>(r.ea + c) * r.over_a;
    const Vector<Acc> pb = peer == 2 ? load<Acc>(r.pb + c) * r.over_pb : load<Acc>(r.eb + c) * r.over_b;
    if (to_a) store<Acc>(to_a + c, load<Acc>(to_a + c) + fresh(mass_times<Acc>(pa * r.peer, d - kl.ab)));
    if (to_b) store<Acc>(to_b + c, load<Acc>(to_b + c) + fresh(mass_times<Acc>(pb * r.peer, -d - kl.ba)));
  });
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
