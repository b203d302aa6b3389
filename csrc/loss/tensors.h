// From the operators' arguments to a Problem, and the tensors that the operators return.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor.h"
#include "checks.h"
#include "options.h"
#include "problem.h"

namespace udskd {

// The tensors of UDSKD_LOSS_ARGUMENTS (csrc/ops.cpp), in that order.
struct Arguments {
  std::optional<Tensor> teacher;
  Tensor a;
  std::optional<Tensor> b, target, ce, kd, peer, certainty;
};

inline bool is_wide(const std::optional<Tensor>& x) { return x && x->scalar_type() == ScalarType::Double; }

// Copies the tensor unless the kernels can read it as it is: elements aligned to their size, classes adjacent in
// memory.
inline void make_readable(std::optional<Tensor>& x) {
  if (!x) return;
  if (!is_aligned(*x, x->element_size())) x = torch::stable::clone(*x);
  const int64_t last = x->dim() - 1;
  if (last >= 0 && x->size(last) > 1 && x->stride(last) != 1) x = torch::stable::contiguous(*x);
}

// The saved rows in the layout that the kernels read: contiguous, aligned to 16 bytes.
inline Tensor packed(const Tensor& rows) {
  return rows.is_contiguous() && is_aligned(rows, 16) ? rows : torch::stable::clone(torch::stable::contiguous(rows));
}

inline ScalarType arithmetic(bool wide) { return wide ? ScalarType::Double : ScalarType::Float; }

// Checks the tensors and makes them readable. The copies replace the arguments, which stay alive while a problem points
// into them.
inline void check_and_make_readable(Arguments& args) {
  check_student_a(args.a);
  check_matrix("teacher", args.teacher, args.a), check_matrix("student_b", args.b, args.a);
  STD_TORCH_CHECK(!args.b || args.b->scalar_type() == args.a.scalar_type(), "student_b must have student_a's dtype, ",
                  torch::headeronly::toString(args.a.scalar_type()), ", got ", described(*args.b));
  check_target(args.target, args.a);
  const ScalarType dtype = arithmetic(is_wide(args.a) || is_wide(args.teacher));
  check_per_row("ce_weights", args.ce, args.a, dtype, true), check_per_row("kd_weights", args.kd, args.a, dtype, true);
  check_per_row("peer_weights", args.peer, args.a, dtype, true);
  check_per_row("certainty", args.certainty, args.a, dtype, false);
  std::optional<Tensor> a = args.a;
  for (std::optional<Tensor>* x :
       {&a, &args.teacher, &args.b, &args.target, &args.ce, &args.kd, &args.peer, &args.certainty})
    make_readable(*x);
  args.a = *a;
}

inline Matrix matrix(const std::optional<Tensor>& x) {
  if (!x) return {};
  return {x->const_data_ptr(), x->stride(0), x->scalar_type()};
}

// The coefficient, with the numbers of a tensor if there is one.
inline Coefficient with_tensor(Coefficient coefficient, const std::optional<Tensor>& x) {
  if (x) coefficient.data = x->const_data_ptr(), coefficient.stride = x->dim() == 0 ? 0 : x->stride(0);
  return coefficient;
}

// The problem of checked arguments: the only place where an operator's arguments become the fields of a Problem.
inline Problem read_problem(Arguments& args, const std::vector<double>& scalars, const std::vector<int64_t>& modes) {
  check_and_make_readable(args);
  Problem p = read_options(scalars, modes);
  p.rows = args.a.size(0), p.classes = args.a.size(1);
  p.wide = is_wide(args.a) || is_wide(args.teacher);
  p.teacher = matrix(args.teacher), p.a = matrix(args.a), p.b = matrix(args.b);
  if (args.target && args.target->dim() == 2) {
    p.target = matrix(args.target);
  } else if (args.target) {
    p.labels = args.target->const_data_ptr<int64_t>();
  }
  p.ce = with_tensor(p.ce, args.ce), p.kd = with_tensor(p.kd, args.kd), p.peer = with_tensor(p.peer, args.peer);
  p.certainty = with_tensor(p.certainty, args.certainty);
  if (args.certainty) p.uncertainty = kGiven;
  return p;
}

struct Outputs {
  Tensor loss, components, weight, entropy, rows;
};

inline ScalarType arithmetic(const Problem& p) { return arithmetic(p.wide); }

// columns: how many numbers of each row are saved for the backward pass.
inline Outputs allocate(const Problem& p, const Tensor& like, int64_t columns) {
  const ScalarType dtype = arithmetic(p);
  const bool each = p.reduction == kUnreduced;
  return {each ? empty_like(like, {p.rows}, dtype) : empty_like(like, {}, dtype),
          each ? empty_like(like, {kComponents, p.rows}, dtype) : empty_like(like, {kComponents}, dtype),
          empty_like(like, {p.rows}, dtype), empty_like(like, {p.rows}, dtype),
          empty_like(like, {p.rows, columns}, dtype)};
}

// The gradients that an operator computes.
struct Needs {
  bool teacher = false, a = false, b = false, coefficients = false;
  constexpr bool logits() const { return teacher || a || b; }
};

// In the dtype of each input; empty where no gradient is needed.
struct Gradients {
  Tensor teacher, a, b, coefficients;  // coefficients: [rows, 3] for ce, kd and peer
};

inline Gradients allocate_gradients(const Problem& p, const Arguments& args, const Needs& needs) {
  auto like = [&](const std::optional<Tensor>& x, bool needed) {
    return needed && x ? empty_like(*x, {p.rows, p.classes}, x->scalar_type()) : empty_like(args.a, {0}, arithmetic(p));
  };
  return {like(args.teacher, needs.teacher), like(args.a, needs.a), like(args.b, needs.b),
          needs.coefficients ? empty_like(args.a, {p.rows, 3}, arithmetic(p)) : empty_like(args.a, {0}, arithmetic(p))};
}

// Null for a gradient that is not needed.
inline void* pointer(Tensor& gradient) { return gradient.dim() == 2 ? gradient.mutable_data_ptr() : nullptr; }

}  // namespace udskd
