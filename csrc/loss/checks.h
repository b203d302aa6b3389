// What each operator checks of its arguments before it touches their memory. udskd/loss/checks.py has better messages,
// but anyone can call torch.ops.udskd without it.
#pragma once

#include <cmath>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "../common/storage.h"
#include "../common/tensor.h"
#include "problem.h"

namespace udskd {

constexpr double kLowestTemperature = 1e-6, kHighestTemperature = 1e6;

constexpr bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Such as "Float [4, 10]", for messages.
inline std::string described(const Tensor& x) {
  std::ostringstream text;
  text << torch::headeronly::toString(x.scalar_type()) << " [";
  for (int64_t d = 0; d < x.dim(); ++d) text << (d ? ", " : "") << x.size(d);
  return text.str() + "]";
}

// Memory that can be read here: dense, complete, and on the device of student_a.
inline void check_memory(const char* name, const Tensor& x, const Tensor& student_a) {
  STD_TORCH_CHECK(x.layout() == torch::headeronly::Layout::Strided, name, " must be a dense tensor");
  STD_TORCH_CHECK(x.device() == student_a.device(), name, " and student_a must be on one device");
  STD_TORCH_CHECK(is_within_storage(x), name, " reaches beyond the end of its storage");
  STD_TORCH_CHECK(x.numel() == 0 || x.const_data_ptr(), name, " has no memory");
}

inline void check_student_a(const Tensor& x) {
  check_given("student_a", x);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) >= 2 && is_floating(x.scalar_type()),
                  "student_a must be floating logits [rows, classes] of two classes or more, got ", described(x));
  check_memory("student_a", x, x);
}

// Logits or class probabilities in the shape of student_a.
inline void check_matrix(const char* name, const std::optional<Tensor>& x, const Tensor& student_a) {
  if (!x) return;
  STD_TORCH_CHECK(x->dim() == 2 && x->size(0) == student_a.size(0) && x->size(1) == student_a.size(1) &&
                      is_floating(x->scalar_type()),
                  name, " must be floating and have the shape of student_a, ", described(student_a), ", got ",
                  described(*x));
  check_memory(name, *x, student_a);
}

inline void check_target(const std::optional<Tensor>& x, const Tensor& student_a) {
  if (!x || x->dim() != 1) return check_matrix("target", x, student_a);
  STD_TORCH_CHECK(x->size(0) == student_a.size(0) && x->scalar_type() == ScalarType::Long, "labels must be Long [",
                  student_a.size(0), "], got ", described(*x));
  check_memory("target", *x, student_a);
}

// One number for each row, or one for all rows where that is allowed.
inline void check_per_row(const char* name, const std::optional<Tensor>& x, const Tensor& student_a, ScalarType dtype,
                          bool one_is_enough) {
  if (!x) return;
  check_given(name, *x);
  const bool fits = x->dim() == 1 ? x->size(0) == student_a.size(0) : x->dim() == 0 && one_is_enough;
  STD_TORCH_CHECK(fits && x->scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype), " [",
                  student_a.size(0), "]", one_is_enough ? " or []" : "", ", got ", described(*x));
  check_memory(name, *x, student_a);
}

inline void check_range(const char* name, double x, double lowest, double highest) {
  STD_TORCH_CHECK(x >= lowest && x <= highest, name, " must be from ", lowest, " to ", highest, ", got ", x);
}

// The numbers of a problem. A coefficient that comes as a tensor has no number.
inline void check_numbers(const Problem& p) {
  check_range("temperature", p.temperature, kLowestTemperature, kHighestTemperature);
  check_range("peer_temperature", p.peer_temperature, kLowestTemperature, kHighestTemperature);
  check_range("uncertainty_temperature", p.uncertainty_temperature, kLowestTemperature, kHighestTemperature);
  STD_TORCH_CHECK(p.label_smoothing >= 0 && p.label_smoothing < 1, "label_smoothing must be in [0, 1), got ",
                  p.label_smoothing);
  for (const auto& [name, x] : {std::pair("ce_weight", p.ce), {"kd_weight", p.kd}, {"peer_weight", p.peer}})
    STD_TORCH_CHECK(x.value >= 0 && std::isfinite(x.value), name, " must be finite and not negative, got ", x.value);
  STD_TORCH_CHECK(p.uncertainty >= kEntropyWeight && p.uncertainty <= kGiven, "uncertainty must be from ",
                  int(kEntropyWeight), " to ", int(kNone), ", got ", p.uncertainty);
  STD_TORCH_CHECK(p.reduction >= kMean && p.reduction <= kUnreduced, "reduction must be from ", int(kMean), " to ",
                  int(kUnreduced), ", got ", p.reduction);
}

// What the forward operator returned as `rows`: `columns` of each row.
inline void check_saved(const Tensor& rows, const Tensor& student_a, ScalarType dtype, int64_t columns) {
  check_given("rows", rows);
  STD_TORCH_CHECK(
      rows.dim() == 2 && rows.size(0) == student_a.size(0) && rows.size(1) == columns && rows.scalar_type() == dtype,
      "rows must be what the forward operator returned, ", torch::headeronly::toString(dtype), " [", student_a.size(0),
      ", ", columns, "], got ", described(rows));
  check_memory("rows", rows, student_a);
}

// PyTorch turns std::out_of_range into IndexError.
[[noreturn]] inline void refuse_label(const Problem& p, int64_t row, bool ignores) {
  std::ostringstream text;
  text << "target: row " << row << " has label " << p.labels[row] << ", expected 0 to " << p.classes - 1;
  if (ignores) text << " or ignore_index " << p.ignore_index;
  throw std::out_of_range(text.str());
}

}  // namespace udskd
