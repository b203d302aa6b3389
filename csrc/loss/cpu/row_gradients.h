// The steps of a row from its divergences on, with the gradients.
#pragma once

#include <cmath>
#include <type_traits>

#include "row_sums.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

STEP Row<Acc> Worker<Acc, Each>::arrange() const {
  const bool ce = p_.has_ce();
  const Acc ce_scale = ce ? scale_ * value<Acc>(p_.ce, row_) : 0, mass = ce ? out_[kTargetMass] : 0;
  Row<Acc> r{};
  r.st = t_.s, r.et = t_.e, r.sa = a_.s, r.ea = a_.e, r.pa = a_.peer, r.oa = a_.one;
  r.sb = b_.s, r.eb = b_.e, r.pb = b_.peer, r.ob = b_.one;
  r.streaming = streaming_;
  r.y = plan_.soft ? y_ : nullptr, r.label = ce && !plan_.soft ? p_.labels[row_] : -1;
  r.over_t = 1 / t_.sum, r.over_a = 1 / a_.sum, r.over_b = 1 / b_.sum;
  r.over_pa = 1 / a_.sum_peer, r.over_pb = 1 / b_.sum_peer;
  const Acc log2_e = Acc(1 / kLn2);
  r.gap_ta = logs_[kGapTA] * log2_e, r.gap_tb = logs_[kGapTB] * log2_e, r.gap_ab = logs_[kGapAB] * log2_e;
  r.peer_ratio = plan_.to_peer;
  r.one_a = ce_scale * mass / a_.sum_one, r.one_b = ce_scale * mass / b_.sum_one, r.target = ce_scale;
  if (plan_.kd) r.kd = scale_ * value<Acc>(p_.kd, row_) * out_[kWeight] * Acc(p_.temperature);
  if (plan_.peer) r.peer = scale_ * value<Acc>(p_.peer, row_) * Acc(p_.peer_temperature);
  return r;
}

template <class Acc, class Each>
template <bool Grad, class Out>
Divergences<Acc> Worker<Acc, Each>::sweep_row(const Row<Acc>& r, Out* to_a, Out* to_b, Ahead next) {
  const auto run = [&](auto kd, auto two, auto peer, auto one) {
    return reduce<Divergences<Acc>>(plan_.padded, [&](Span span) {
      return divergences_and_gradients<Acc, kd.value, two.value, peer.value, one.value, Grad>(r, to_a, to_b, span,
                                                                                              next);
    });
  };
  const std::integral_constant<int, 0> none;
  const std::integral_constant<int, 1> same;
  const std::integral_constant<int, 2> other;
  const auto with = [&](auto one) {
    const std::true_type yes;
    const std::false_type no;
    if (!plan_.two) return plan_.kd ? run(yes, no, none, one) : run(no, no, none, one);
    if (!plan_.kd) return plan_.peer ? run(no, yes, same, one) : run(no, yes, none, one);
    return plan_.peer == 2 ? run(yes, yes, other, one)
           : plan_.peer    ? run(yes, yes, same, one)
                           : run(yes, yes, none, one);
  };
  if constexpr (Grad)
    if (plan_.one == kFree) return with(std::integral_constant<int, kFree>());
  return with(none);
}

// Divergences, and the gradients on the way: straight into the caller's memory where nothing else flows into them.
STEP Divergences<Acc> Worker<Acc, Each>::diverge(const Row<Acc>& r) {
  const Job& job = plan_.job;
  const Ahead next = ahead(p_.teacher ? p_.teacher : p_.a, row_ + 1);
  if (!job.gradients()) return mended(r, sweep_row<false, Acc>(r, nullptr, nullptr, next));
  const bool coupled = job.teacher || (plan_.peer && !p_.detach_peer);
  if constexpr (std::is_same_v<Acc, float>) {
    if (!coupled && !careful_ && plan_.classes >= Lanes<Acc>::kCount) {
      const auto direct = [&](auto zero) {
        using Out = decltype(zero);
        const auto place = [&](void* to) { return to ? static_cast<Out*>(to) + row_ * plan_.classes : nullptr; };
        return mended(r, sweep_row<true, Out>(r, place(job.a), place(job.b), next));
      };
      if (p_.a.dtype == ScalarType::Float) return direct(float());
      if (p_.a.dtype == ScalarType::BFloat16) return direct(BFloat16());
    }
  }
  Acc *to_t = job.teacher ? gradient_[0] : nullptr, *to_a = job.a ? gradient_[1] : nullptr,
      *to_b = job.b ? gradient_[2] : nullptr;
  const Divergences<Acc> kl = mended(r, sweep_row<true, Acc>(r, to_a, to_b, next));
  if (coupled) {
    const int peer = p_.detach_peer ? 0 : plan_.peer;
    auto plain = reduce<Divergences<Acc>>(
        plan_.padded, [&](Span span) { return plain_divergences<Acc>(r, plan_.kd, plan_.two, peer, span); });
    const auto infinite_too = [](Acc& x, Acc exact) { x = exact == Acc(INFINITY) ? exact : x; };
    infinite_too(plain.ta, kl.ta), infinite_too(plain.tb, kl.tb), infinite_too(plain.ab, kl.ab),
        infinite_too(plain.ba, kl.ba);
    every(plan_.padded,
          [&](Span span) { target_gradients<Acc>(r, plain, plan_.kd, plan_.two, peer, to_t, to_a, to_b, span); });
  }
  keep(to_t, job.teacher, p_.teacher), keep(to_a, job.a, p_.a), keep(to_b, job.b, p_.b);
  return kl;
}

STEP void Worker<Acc, Each>::keep(const Acc* from, void* to, const Matrix& like) {
  if (!to) return;
  typed<Acc>(Matrix{to, plan_.classes, like.dtype}, row_, [&](auto* place) {
    auto* out = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(place)>>*>(place);
    every(plan_.classes, [&](Span span) { store_row<Acc>(from, span, out); });
  });
}

// Divergences that are small again and precisely; those of classes that only one side excludes are infinite.
STEP Divergences<Acc> Worker<Acc, Each>::mended(const Row<Acc>& r, Divergences<Acc> kl) {
  const Acc near = Acc(1. / 128);
  const bool kd = plan_.kd, two = plan_.two, peer = plan_.peer;
  if ((kd && (kl.ta < near || (two && kl.tb < near))) || (peer && (kl.ab < near || kl.ba < near)))
    kl = reduce<Divergences<Acc>>(plan_.padded,
                                  [&](Span span) { return precise_divergences<Acc>(r, kd, two, plan_.peer, span); });
  const auto infinite_if = [](bool excluded, Acc& x) { x = excluded && x == x ? Acc(INFINITY) : x; };
  infinite_if(kd && excluded(t_.e, a_), kl.ta), infinite_if(kd && two && excluded(t_.e, b_), kl.tb);
  infinite_if(peer && excluded(a_.peer, b_), kl.ab), infinite_if(peer && excluded(b_.peer, a_), kl.ba);
  return {not_negative(kl.ta), not_negative(kl.tb), not_negative(kl.ab), not_negative(kl.ba)};
}

STEP bool Worker<Acc, Each>::excluded(const Acc* mass, const Network<Acc>& x) const {
  return x.excludes && infinite<Acc>(mass, x.s, Lanes<Acc>::kExcluded / 2 * plan_.k, plan_.classes);
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
