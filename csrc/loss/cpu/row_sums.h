// The steps of a row up to its divergences: networks, logarithms, weight, cross-entropies.
#pragma once

#include <algorithm>
#include <cmath>

#include "rows.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

#define STEP                       \
  template <class Acc, class Each> \
  inline

// A network's s, exponentials and sums at its base temperature. Rows are read in place, but for those that a vector
// cannot read (short ones), that may have -inf in them, and those whose dtype is not worth a sweep of its own.
template <class Acc, class Each>
template <bool Moment>
Sums<Acc> Worker<Acc, Each>::load_network(const Matrix& m, Acc k, int power, Network<Acc>& x, Ahead next) {
  return typed<Acc>(m, row_, [&](auto* from) {
    Acc* const powers = plan_.keeps_one && !Moment ? x.one : nullptr;
    x.excludes = false;
    x.largest = reduce<Largest<Acc>>(plan_.classes, [&](Span span) { return largest<Acc>(from, span); }).value;
    const auto sums = [&](auto* logits) {
      return reduce<Sums<Acc>>(plan_.padded, [&](Span span) {
        return exponentials_and_powers<Acc, Moment>(power, logits, x.largest, k, x.s, x.e, powers, span, next);
      });
    };
    if constexpr (std::is_same_v<Acc, float> && !std::is_same_v<decltype(from), const Half*>)
      if (plan_.classes >= Lanes<Acc>::kCount && !careful_) return sums(from);
    x.excludes = reduce<Found>(plan_.classes, [&](Span span) { return copy_row<Acc>(from, span, raw_); }).yes > 0;
    return sums(static_cast<const Acc*>(raw_));
  });
}

STEP void Worker<Acc, Each>::load_teacher() {
  spread_sums_ = load_network<true>(p_.teacher, plan_.teacher_k, plan_.spread_power, t_, ahead(p_.a, row_));
  t_.sum = spread_sums_.base;
  if (plan_.spread && !plan_.spread_power)
    spread_sums_ = reduce<Sums<Acc>>(
        plan_.padded, [&](Span span) { return other_exponentials<Acc, true>(t_.s, plan_.to_spread, nullptr, span); });
}

STEP void Worker<Acc, Each>::load_student(const Matrix& m, Network<Acc>& x, Ahead next) {
  const Sums<Acc> sums = load_network<false>(m, plan_.k, plan_.one > 1 ? plan_.one : 0, x, next);
  const auto other = [&](Acc ratio, Acc* to) {
    return reduce<Sums<Acc>>(plan_.padded,
                             [&](Span span) { return other_exponentials<Acc, false>(x.s, ratio, to, span); })
        .power;
  };
  x.sum = sums.base;
  x.sum_one = plan_.one == 1 ? sums.base : plan_.one ? sums.power : other(plan_.to_one, x.one);
  x.sum_peer = plan_.peer != 2 ? sums.base : x.peer == x.one ? x.sum_one : other(plan_.to_peer, x.peer);
}

// How sure the teacher is, and the weight that follows.
STEP void Worker<Acc, Each>::weigh() {
  spread_ = {};
  if (plan_.spread) {
    const Acc over = 1 / spread_sums_.power, scale = plan_.spread_power ? plan_.to_spread : Acc(1);
    spread_ = {logs_[kLogSpread] - Acc(kLn2) * scale * spread_sums_.moment * over, over, over};
  }
  if (plan_.spread && p_.uncertainty == kMargin) {
    const auto next = reduce<RunnerUp<Acc>>(plan_.padded, [&](Span span) { return runner_up<Acc>(t_.s, span); });
    if (!(next.ties > 1)) spread_.second = exponential(next.best * plan_.to_spread * Acc(kLn2)) * spread_.largest;
  }
  out_[kWeight] = p_.teacher ? certainty<Acc>(p_, row_, spread_, plan_.log_classes) : Acc(1);
  out_[kEntropy] = spread_.entropy;
}

// The target as a distribution in scratch.
STEP void Worker<Acc, Each>::load_target() {
  const Acc keep = Acc(1 - p_.label_smoothing), floor = Acc(p_.label_smoothing / double(p_.classes));
  if (p_.target) {
    typed_target<Acc>(p_.target, row_, [&](auto* y) {
      every(plan_.classes, [&](Span span) { copy_target<Acc>(y, keep, floor, span, y_); });
    });
  } else {
    std::fill(y_, y_ + plan_.classes, floor);
    y_[p_.labels[row_]] += keep;
  }
  for (int64_t c = plan_.classes; c < plan_.padded; ++c) y_[c] = 0;
}

// log sum_c e^x(c), x shifted by the row's maximum. Where most of the sum is the maximum's 1, adding the rest to it
// class by class has rounded much of the rest away: it is summed again, alone.
STEP Acc Worker<Acc, Each>::log_sum(Network<Acc>& x) {
  if (!(x.sum_one < Acc(1.5))) return logs_[&x == &a_ ? kLogA : kLogB];
  const Acc others =
      reduce<Acc>(plan_.padded, [&](Span span) { return rest<Acc>(x.one, plan_.keeps_one ? 1 : plan_.one, span); });
  x.sum_one = 1 + others;
  return logarithm1(others);
}

// -sum_c y(c) log p(c) = mass log sum_c e^x(c) - sum_c y(c) x(c), x shifted by the row's maximum.
STEP void Worker<Acc, Each>::cross_entropies() {
  const Acc lse_a = log_sum(a_), lse_b = plan_.two ? log_sum(b_) : 0;
  if (!plan_.soft) {
    const auto below = [&](const Matrix& m, Acc largest) {
      return typed<Acc>(m, row_, [&](auto* x) { return largest - Acc(widened(x[p_.labels[row_]])); });
    };
    out_[kTargetMass] = 1, out_[kCeA] = lse_a + below(p_.a, a_.largest);
    if (plan_.two) out_[kCeB] = lse_b + below(p_.b, b_.largest);
    return;
  }
  load_target();
  const auto sums = reduce<TargetSums<Acc>>(
      plan_.padded, [&](Span span) { return target_sums<Acc>(y_, a_.s, plan_.two ? b_.s : nullptr, span); });
  out_[kTargetMass] = sums.mass;
  const auto value = [&](const Network<Acc>& x, Acc lse, Acc with) {
    const Acc finite = sums.mass * lse - plan_.to_nats * with;
    return excluded(y_, x) && finite == finite ? Acc(INFINITY) : finite;
  };
  out_[kCeA] = value(a_, lse_a, sums.with_a);
  if (plan_.two) out_[kCeB] = value(b_, lse_b, sums.with_b);
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
