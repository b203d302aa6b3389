// Computations once for each row rather than once for each class, in one version for every backend.
//
// On the CPU these functions are always inlined into a kernel, which is compiled for its SIMD level: they have no code
// of their own that the linker could share between levels.
#pragma once

#include <cstdint>

#include "problem.h"

#ifdef __CUDACC__
#define UDSKD_ROW_MATH __device__ inline
#else
#define UDSKD_ROW_MATH inline __attribute__((always_inline))
#endif

namespace udskd {

template <class Acc>
struct Spread {
  Acc entropy, largest, second;  // of softmax(logits / temperature): entropy in nats, two largest probabilities
};

template <class Acc>
UDSKD_ROW_MATH Acc value(const Coefficient& x, int64_t row) {
  return x.data ? static_cast<const Acc*>(x.data)[row * x.stride] : Acc(x.value);
}

template <class Acc>
UDSKD_ROW_MATH Acc not_negative(Acc x) {
  return x < 0 ? Acc(0) : x;  // rounding can take a divergence below 0; NaN stays
}

// The teacher's weight before normalisation.
template <class Acc>
UDSKD_ROW_MATH Acc certainty(const Problem& p, int64_t row, const Spread<Acc>& s, Acc log_classes) {
  if (p.uncertainty == kNone) return 1;
  if (p.uncertainty == kGiven) return value<Acc>(p.certainty, row);
  Acc sure = p.uncertainty == kMaxProb ? s.largest : s.largest - s.second, unsure = 1 - sure;
  if (p.uncertainty == kEntropyWeight) unsure = s.entropy / log_classes, sure = 1 - unsure;
  const Acc share = p.trust_uncertain ? unsure : sure;  // not 1 - sure, which loses the digits of a small entropy
  return share < 0 ? Acc(0) : share > 1 ? Acc(1) : share;
}

// The row's six components of the loss, without their coefficients.
template <class Acc>
UDSKD_ROW_MATH void row_components(const Problem& p, const Acc* row, Acc* out) {
  const Acc temperature = Acc(p.temperature), peer_temperature = Acc(p.peer_temperature);
  const Acc kd = row[kWeight] * (temperature * temperature), peer = peer_temperature * peer_temperature;
  out[0] = row[kCeA], out[1] = row[kCeB];
  out[2] = p.has_kd() ? kd * row[kKlTA] : 0, out[3] = p.has_kd() && p.b ? kd * row[kKlTB] : 0;
  out[4] = peer * row[kKlBA], out[5] = peer * row[kKlAB];
}

template <class Acc>
UDSKD_ROW_MATH Acc row_loss(const Problem& p, int64_t row, const Acc* components) {
  Acc loss = 0;
  if (p.has_ce()) loss += value<Acc>(p.ce, row) * (components[0] + components[1]);
  if (p.has_kd()) loss += value<Acc>(p.kd, row) * (components[2] + components[3]);
  if (p.has_peer()) loss += value<Acc>(p.peer, row) * (components[4] + components[5]);
  return loss;
}

}  // namespace udskd
