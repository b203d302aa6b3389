// The problem, as one struct: what the operators were asked, in plain pointers that every backend understands.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace udskd {

using torch::headeronly::ScalarType;

// What is known of a row, in the arithmetic's dtype: the CPU has one on its stack, CUDA keeps [rows, kColumns] for the
// backward pass.
// clang-format off
enum Column : int {
  kMaxT, kMaxA, kMaxB,                           // maxima, by which the logits are shifted
  kSumT, kSumA, kSumB,                           // sums of exponentials of the shifted logits at the temperature,
  kSumPeerA, kSumPeerB, kSumOneA, kSumOneB,      // at the peer temperature, at 1
  kTargetMass,                                   // sum of the target distribution: 1 for a label
  kCeA, kCeB,                                    // cross-entropies
  kKlTA, kKlTB, kKlBA, kKlAB,                    // KL(teacher || student), KL(peer || student), bare
  kWeight, kEntropy,                             // the teacher's certainty as a weight, and its entropy
  kShare,                                        // of the loss: 1/n (mean), 1 (sum, none), 0 when ignored;
                                                 // on CUDA negative where the row was done with care, as it is to be again
  kColumns
};
// clang-format on

enum Uncertainty : int64_t { kEntropyWeight, kMaxProb, kMargin, kNone, kGiven };
enum Reduction : int64_t { kMean, kSum, kUnreduced };
constexpr int kComponents = 6;  // ce_a, ce_b, kd_a, kd_b, peer_a, peer_b

// Rows of [rows, classes]; the classes are adjacent, the rows any stride apart.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;
  ScalarType dtype = ScalarType::Float;
  constexpr explicit operator bool() const { return data != nullptr; }
};

// A coefficient of the loss: one number for all rows, or one from memory for each row (stride 0 repeats a single one).
struct Coefficient {
  double value = 0;
  const void* data = nullptr;
  int64_t stride = 0;
  constexpr bool on() const { return data != nullptr || value != 0; }
};

struct Problem {
  int64_t rows = 0, classes = 0;
  bool wide = false;  // arithmetic in double
  Matrix teacher, a, b, target;
  const int64_t* labels = nullptr;
  Coefficient ce, kd, peer, certainty;
  double temperature = 1, peer_temperature = 1, uncertainty_temperature = 1, label_smoothing = 0;
  int64_t uncertainty = kEntropyWeight, ignore_index = -100, reduction = kMean;
  bool trust_uncertain = false, normalize_weights = false, detach_peer = true;

  constexpr bool has_ce() const { return (labels || target) && ce.on(); }
  constexpr bool has_kd() const { return teacher && kd.on(); }
  constexpr bool has_peer() const { return b && peer.on(); }
};

constexpr int64_t size_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

}  // namespace udskd
