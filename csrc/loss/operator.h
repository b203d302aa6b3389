// The operators' C++ signatures, and the step from them to a Problem. A backend is these functions:
//   Outputs forward(const Problem&, const Tensor& like)
//   Outputs fused(const Problem&, const Tensor& like, Gradients&)       of the reduced loss, for a grad_output of 1
//   void backward(const Problem&, const Tensor& grad_loss, const Tensor& rows, Gradients&)
#pragma once

#include "../common/registration.h"
#include "tensors.h"

namespace udskd {

// The numbers that the forward operators take, in the order of their schemas.
inline Problem read_forward(Arguments& args, double ce_weight, double kd_weight, double peer_weight, double temperature,
                            double peer_temperature, double uncertainty_temperature, double label_smoothing,
                            int64_t uncertainty, bool trust_uncertain, bool normalize_weights, bool detach_peer,
                            int64_t ignore_index, int64_t reduction) {
  check_and_make_readable(args);
  STD_TORCH_CHECK(uncertainty < kGiven, "uncertainty must be from 0 to ", int(kNone), ", got ", uncertainty);
  Problem p = read(args, ce_weight, kd_weight, peer_weight);
  p.temperature = temperature, p.peer_temperature = peer_temperature,
  p.uncertainty_temperature = uncertainty_temperature;
  p.label_smoothing = label_smoothing, p.uncertainty = args.certainty ? int64_t(kGiven) : uncertainty,
  p.trust_uncertain = trust_uncertain;
  p.normalize_weights = normalize_weights, p.detach_peer = detach_peer, p.ignore_index = ignore_index,
  p.reduction = reduction;
  check_numbers(p);
  return p;
}

template <auto Forward>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward_operator(
    Optional teacher, Tensor student_a, Optional student_b, Optional target, Optional ce_weights, Optional kd_weights,
    Optional peer_weights, Optional certainty, double ce_weight, double kd_weight, double peer_weight,
    double temperature, double peer_temperature, double uncertainty_temperature, double label_smoothing,
    int64_t uncertainty, bool trust_uncertain, bool normalize_weights, bool detach_peer, int64_t ignore_index,
    int64_t reduction) {
  Arguments args{teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights, certainty};
  const Problem p = read_forward(args, ce_weight, kd_weight, peer_weight, temperature, peer_temperature,
                                 uncertainty_temperature, label_smoothing, uncertainty, trust_uncertain,
                                 normalize_weights, detach_peer, ignore_index, reduction);
  Outputs out = Forward(p, args.a);
  return {out.loss, out.components, out.weight, out.entropy, out.rows};
}

template <auto Fused>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_operator(
    Optional teacher, Tensor student_a, Optional student_b, Optional target, Optional ce_weights, Optional kd_weights,
    Optional peer_weights, Optional certainty, double ce_weight, double kd_weight, double peer_weight,
    double temperature, double peer_temperature, double uncertainty_temperature, double label_smoothing,
    int64_t uncertainty, bool trust_uncertain, bool normalize_weights, bool detach_peer, int64_t ignore_index,
    int64_t reduction, bool grad_teacher, bool grad_a, bool grad_b) {
  Arguments args{teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights, certainty};
  const Problem p = read_forward(args, ce_weight, kd_weight, peer_weight, temperature, peer_temperature,
                                 uncertainty_temperature, label_smoothing, uncertainty, trust_uncertain,
                                 normalize_weights, detach_peer, ignore_index, reduction);
  STD_TORCH_CHECK(reduction != kUnreduced || !(grad_teacher || grad_a || grad_b),
                  "the gradient of an unreduced loss depends on grad_output: use the backward operator");
  Gradients to = allocate_gradients(p, args, grad_teacher, grad_a, grad_b, false);
  Outputs out = Fused(p, args.a, to);
  return {out.loss, out.components, out.weight, out.entropy, out.rows, to.teacher, to.a, to.b};
}

// kSaved: the columns that this backend's forward operator saves of each row.
template <auto Backward, int64_t kSaved>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_operator(
    Tensor grad_loss, Tensor rows, Optional teacher, Tensor student_a, Optional student_b, Optional target,
    Optional ce_weights, Optional kd_weights, Optional peer_weights, double ce_weight, double kd_weight,
    double peer_weight, double temperature, double peer_temperature, double label_smoothing, bool detach_peer,
    bool grad_teacher, bool grad_a, bool grad_b, bool grad_weights) {
  Arguments args{teacher, student_a, student_b, target, ce_weights, kd_weights, peer_weights, std::nullopt};
  check_and_make_readable(args);
  Problem p = read(args, ce_weight, kd_weight, peer_weight);
  p.temperature = temperature, p.peer_temperature = peer_temperature, p.label_smoothing = label_smoothing,
  p.detach_peer = detach_peer;
  check_numbers(p);
  check_saved(rows, args.a, arithmetic(p), kSaved);
  check_per_row("grad_loss", grad_loss, args.a, arithmetic(p), true);
  Gradients to = allocate_gradients(p, args, grad_teacher, grad_a, grad_b, grad_weights);
  std::optional<Tensor> grad = grad_loss;
  make_readable(grad);
  Backward(p, *grad, packed(rows), to);
  return {to.teacher, to.a, to.b, to.coefficients};
}

}  // namespace udskd

#define UDSKD_REGISTER(key, forward, backward, saved)                                              \
  UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(key), m) {                                      \
    m.impl("dual_student_loss", TORCH_BOX(&udskd::forward_operator<forward>));                     \
    m.impl("dual_student_loss_backward", TORCH_BOX((&udskd::backward_operator<backward, saved>))); \
  }

#define UDSKD_REGISTER_FUSED(key, fused)                                         \
  UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(key), m) {                    \
    m.impl("dual_student_loss_fused", TORCH_BOX(&udskd::fused_operator<fused>)); \
  }

#define UDSKD_REGISTER_SCALE(key, scale) \
  UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(key), m) { m.impl("dual_student_loss_scale", TORCH_BOX(&(scale))); }
