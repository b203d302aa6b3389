// The operators' C++ signatures. A backend registers these functions:
//   Outputs forward(const Problem&, const Tensor& like, Gradients&)     with the gradients of a reduced loss that are
//                                                                       not empty, for a grad_output of 1
//   void backward(const Problem&, const Tensor& grad_loss, const Tensor& rows, Gradients&)
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/registration.h"
#include "tensors.h"

namespace udskd {

template <auto Forward>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_operator(
    Optional teacher, Tensor student_a, Optional student_b, Optional target, Optional ce_weights, Optional kd_weights,
    Optional peer_weights, Optional certainty, std::vector<double> scalars, std::vector<int64_t> modes,
    std::vector<bool> needs) {
  Arguments args{teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights, certainty};
  const Problem p = read_problem(args, scalars, modes);
  const auto [needs_teacher, needs_a, needs_b] = exactly<3>("needs", needs);
  const Needs needed{needs_teacher, needs_a, needs_b};
  STD_TORCH_CHECK(p.reduction != kUnreduced || !needed.logits(),
                  "the gradient of an unreduced loss depends on grad_output: use the backward operator");
  Gradients to = allocate_gradients(p, args, needed);
  Outputs out = Forward(p, args.a, to);
  return {out.loss, out.components, out.weight, out.entropy, out.rows, to.teacher, to.a, to.b};
}

template <auto Forward>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_operator(
    Optional teacher, Tensor student_a, Optional student_b, Optional target, Optional ce_weights, Optional kd_weights,
    Optional peer_weights, Optional certainty, std::vector<double> scalars, std::vector<int64_t> modes) {
  const auto [loss, components, weight, entropy, rows, to_teacher, to_a, to_b] =
      fused_operator<Forward>(teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights, certainty,
                              scalars, modes, {false, false, false});
  return {loss, components, weight, entropy, rows};
}

// kSaved: how many numbers of each row this backend saves in the forward pass.
template <auto Backward, int64_t kSaved>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_operator(Tensor grad_loss, Tensor rows, Optional teacher,
                                                             Tensor student_a, Optional student_b, Optional target,
                                                             Optional ce_weights, Optional kd_weights,
                                                             Optional peer_weights, Optional certainty,
                                                             std::vector<double> scalars, std::vector<int64_t> modes,
                                                             std::vector<bool> needs) {
  Arguments args{teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights, certainty};
  const Problem p = read_problem(args, scalars, modes);
  const auto [needs_teacher, needs_a, needs_b, needs_coefficients] = exactly<4>("needs", needs);
  check_saved(rows, args.a, arithmetic(p), kSaved);
  check_per_row("grad_loss", grad_loss, args.a, arithmetic(p), true);
  Gradients to = allocate_gradients(p, args, {needs_teacher, needs_a, needs_b, needs_coefficients});
  std::optional<Tensor> grad = grad_loss;
  make_readable(grad);
  Backward(p, *grad, packed(rows), to);
  return {to.teacher, to.a, to.b, to.coefficients};
}

}  // namespace udskd

#define UDSKD_REGISTER(key, forward, backward, saved)                                              \
  UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(key), m) {                                      \
    m.impl("dual_student_loss", TORCH_BOX(&udskd::forward_operator<forward>));                     \
    m.impl("dual_student_loss_fused", TORCH_BOX(&udskd::fused_operator<forward>));                 \
    m.impl("dual_student_loss_backward", TORCH_BOX((&udskd::backward_operator<backward, saved>))); \
  }

#define UDSKD_REGISTER_SCALE(key, scale) \
  UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(key), m) { m.impl("dual_student_loss_scale", TORCH_BOX(&(scale))); }
