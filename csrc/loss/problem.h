// The arguments of an operator as one struct of plain pointers and numbers, which every backend reads.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace udskd {

using torch::headeronly::ScalarType;

// Intermediate results of a row, in the dtype of the arithmetic. The CPU kernels hold one row on the stack; the CUDA
// kernels save [rows, kColumns] for the backward pass.
// clang-format off
enum Column : int {
  kMaxT, kMaxA, kMaxB,                           // maxima, by which the logits are shifted
  kSumT, kSumA, kSumB,                           // sums of exponentials of the shifted logits at the temperature,
  kSumPeerA, kSumPeerB, kSumOneA, kSumOneB,      // at the peer temperature, at temperature 1
  kTargetMass,                                   // sum of the target distribution: 1 for a label
  kCeA, kCeB,                                    // cross-entropies
  kKlTA, kKlTB, kKlBA, kKlAB,                    // KL(teacher || student), KL(peer || student), without coefficients
  kWeight, kEntropy,                             // the teacher's certainty as a weight, and its entropy
  kShare,                                        // factor of the row in the loss: 1/n (mean), 1 (sum, none), 0 (ignored);
                                                 // on CUDA negative if the generic kernel computed the row, which then
                                                 // also computes its gradients
  kColumns
};
// clang-format on

enum Uncertainty : int64_t { kEntropyWeight, kMaxProb, kMargin, kNone, kGiven };
enum Reduction : int64_t { kMean, kSum, kUnreduced };
constexpr int kComponents = 6;  // ce_a, ce_b, kd_a, kd_b, peer_a, peer_b

// [rows, classes]; the classes of a row are adjacent in memory, the rows `stride` elements apart.
struct Matrix {
  const void* data = nullptr;
  int64_t stride = 0;
  ScalarType dtype = ScalarType::Float;
  constexpr explicit operator bool() const { return data != nullptr; }
};

// A coefficient of the loss: `value` for all rows or, if data is given, a number of each row (stride 0: one for all).
struct Coefficient {
  double value = 0;
  const void* data = nullptr;
  int64_t stride = 0;
  constexpr bool on() const { return data != nullptr || value != 0; }
};

struct Problem {
  int64_t rows = 0, classes = 0;
  bool wide = false;  // whether the arithmetic is in double
  Matrix teacher, a, b, target;
  const int64_t* labels = nullptr;
  Coefficient ce, kd, peer, certainty;  // certainty: of the teacher, if uncertainty is kGiven
  double temperature = 1, peer_temperature = 1, uncertainty_temperature = 1, label_smoothing = 0;
  int64_t uncertainty = kEntropyWeight, ignore_index = -100, reduction = kMean;
  bool trust_uncertain = false, normalize_weights = false, detach_peer = true;

  constexpr bool has_ce() const { return (labels || target) && ce.on(); }
  constexpr bool has_kd() const { return teacher && kd.on(); }
  constexpr bool has_peer() const { return b && peer.on(); }
  constexpr bool has_soft_target() const { return has_ce() && (target || label_smoothing != 0); }
};

constexpr int64_t size_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

}  // namespace udskd
