// What the rows of a problem need computed, and how their exponentials follow from each other: decided once for all
// rows, the same for every backend.
#pragma once

#include "problem.h"

namespace udskd {

// Powers by which an exponential at one temperature gives that at another: ratios of the temperatures that are common.
constexpr int power_for(double ratio) {
  for (const int n : {1, 2, 3, 4, 5, 6, 8})
    if (ratio == n) return n;
  return 0;
}

struct Terms {
  bool teacher, two, kd, ce;          // networks and divergences that there are
  bool soft;                          // the target is a distribution, if only by smoothing
  bool spread;                        // the teacher's entropy and largest probabilities are needed
  double base, teacher_base;          // temperatures of the first exponentials
  double to_peer, to_one, to_spread;  // a shifted logit at another temperature = that at the base * this
  int peer;                           // 0 none, 1 at the base temperature, 2 at its own
  int one, spread_power;              // exponentials at 1 (of the spread) are this power of those at the base, or 0

  constexpr Terms(const Problem& p, bool weights_only, bool entropy)
      : teacher(p.teacher),
        two(p.b),
        kd(p.has_kd() && !weights_only),
        ce(p.has_ce()),
        soft(p.has_ce() && (p.target || p.label_smoothing != 0)),
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
