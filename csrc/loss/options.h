// The options of the loss, which the operators take as two lists in the order of Scalars and Modes in
// udskd/loss/options.py.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../common/tensor.h"
#include "problem.h"

namespace udskd {

constexpr double kLowestTemperature = 1e-6, kHighestTemperature = 1e6;

// The list as an array, whose elements can be bound to names.
template <size_t kSize, class T>
std::array<T, kSize> exactly(const char* name, const std::vector<T>& list) {
  STD_TORCH_CHECK(list.size() == kSize, name, " must have ", kSize, " elements, got ", list.size());
  std::array<T, kSize> elements;
  std::copy_n(list.begin(), kSize, elements.begin());
  return elements;
}

template <class T>
void check_range(const char* name, T x, T lowest, T highest) {
  STD_TORCH_CHECK(x >= lowest && x <= highest, name, " must be from ", lowest, " to ", highest, ", got ", x);
}

inline bool flag(const char* name, int64_t x) {
  check_range<int64_t>(name, x, 0, 1);
  return x == 1;
}

inline void check_scalars(const Problem& p) {
  for (const auto& [name, x] : {std::pair("temperature", p.temperature),
                                {"peer_temperature", p.peer_temperature},
                                {"uncertainty_temperature", p.uncertainty_temperature}})
    check_range(name, x, kLowestTemperature, kHighestTemperature);
  STD_TORCH_CHECK(p.label_smoothing >= 0 && p.label_smoothing < 1, "label_smoothing must be in [0, 1), got ",
                  p.label_smoothing);
  for (const auto& [name, x] : {std::pair("ce_weight", p.ce), {"kd_weight", p.kd}, {"peer_weight", p.peer}})
    STD_TORCH_CHECK(x.value >= 0 && std::isfinite(x.value), name, " must be finite and not negative, got ", x.value);
}

// The fields of a problem that do not come from tensors.
inline Problem read_options(const std::vector<double>& scalars, const std::vector<int64_t>& modes) {
  Problem p;
  const auto [ce_weight, kd_weight, peer_weight, temperature, peer_temperature, uncertainty_temperature,
              label_smoothing] = exactly<7>("scalars", scalars);
  const auto [uncertainty, trust_uncertain, normalize_weights, detach_peer, ignore_index, reduction] =
      exactly<6>("modes", modes);
  p.ce.value = ce_weight, p.kd.value = kd_weight, p.peer.value = peer_weight;
  p.temperature = temperature, p.peer_temperature = peer_temperature;
  p.uncertainty_temperature = uncertainty_temperature, p.label_smoothing = label_smoothing;
  check_scalars(p);
  check_range<int64_t>("uncertainty", uncertainty, kEntropyWeight, kNone);
  check_range<int64_t>("reduction", reduction, kMean, kUnreduced);
  p.uncertainty = uncertainty, p.ignore_index = ignore_index, p.reduction = reduction;
  p.trust_uncertain = flag("trust_uncertain", trust_uncertain);
  p.normalize_weights = flag("normalize_weights", normalize_weights);
  p.detach_peer = flag("detach_peer", detach_peer);
  return p;
}

}  // namespace udskd
