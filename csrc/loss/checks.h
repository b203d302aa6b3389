// The checks of the tensors, made before a kernel reads their memory. udskd/loss/checks.py has better messages, but
// torch.ops.udskd can be called without it.
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../common/storage.h"
#include "../common/tensor.h"
#include "problem.h"

namespace udskd {

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

// The memory can be read: it is dense, complete and on the device of student_a.
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

// One number for each row or, with one_is_enough, one for all rows.
inline void check_per_row(const char* name, const std::optional<Tensor>& x, const Tensor& student_a, ScalarType dtype,
                          bool one_is_enough) {
  if (!x) return;
  check_given(name, *x);
  const bool fits = x->dim() == 1 ? x->size(0) == student_a.size(0) : x->dim() == 0 && one_is_enough;
  STD_TORCH_CHECK(fits && x->scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype), " [",
                  student_a.size(0), "]", one_is_enough ? " or []" : "", ", got ", described(*x));
  check_memory(name, *x, student_a);
}

// The forward operator's output `rows`, [rows, columns].
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
