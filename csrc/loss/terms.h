// Which terms of the loss a problem has, and how the exponentials at its temperatures follow from each other. Decided
// once for all rows, in the same way for every backend.
#pragma once

#include "problem.h"

namespace udskd {

// The n for which e^(s / t) = (e^(s / T))^n at the common ratios T / t = n of two temperatures; 0 for any other ratio.
constexpr int power_for(double ratio) {
  for (const int n : {1, 2, 3, 4, 5, 6, 8})
    if (ratio == n) return n;
  return 0;
}

struct Terms {
  bool teacher, two, kd, ce;          // whether the problem has a teacher, a second student, and these terms
  bool soft;                          // whether the target is a distribution, also one made by label smoothing
  bool spread;                        // whether the teacher's entropy or largest probabilities are needed
  double base, teacher_base;          // temperatures at which the exponentials of students and teacher are computed
  double to_peer, to_one, to_spread;  // factors from a shifted logit at the base to that at another temperature
  int peer;                           // 0: no peer term, 1: at the base temperature, 2: at another temperature
  int one, spread_power;              // power_for the temperature 1 and for the uncertainty's temperature

  constexpr Terms(const Problem& p, bool weights_only, bool entropy)
      : teacher(p.teacher),
        two(p.b),
        kd(p.has_kd() && !weights_only),
        ce(p.has_ce()),
        soft(p.has_soft_target()),
        spread(p.teacher && (entropy || p.uncertainty < kNone)),
        base(kd             ? p.temperature
             : p.has_peer() ? p.peer_temperature
                            : 1),
        teacher_base(kd ? p.temperature : p.uncertainty_temperature),
        to_peer(base / p.peer_temperature),
        to_one(base),
        to_spread(teacher_base / p.uncertainty_temperature),
        peer(!p.has_peer()                ? 0
             : p.peer_temperature == base ? 1
                                          : 2),
        one(ce ? power_for(base) : 1),
        spread_power(spread ? power_for(to_spread) : 0) {}
};

}  // namespace udskd
