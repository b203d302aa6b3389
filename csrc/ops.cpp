// Every operator's schema on one screen. Kernels are registered by the backends (loss/, image/), derivatives in Python
// (udskd/loss/ops.py).
#include <torch/csrc/stable/library.h>

#ifdef UDSKD_EMULATE  // see loss/operator.h
STABLE_TORCH_LIBRARY(udskd_emulated, m) {
#else
STABLE_TORCH_LIBRARY(udskd, m) {
#endif
  // Logits [rows, classes]; target: int64 [rows] or a distribution [rows, classes]. A coefficient is a float unless its
  // tensor (one number or [rows], in the arithmetic's dtype) is given. uncertainty: 0 entropy, 1 max_prob, 2 margin, 3
  // none; reduction: 0 mean, 1 sum, 2 none.
  m.def(
      "dual_student_loss(Tensor? teacher, Tensor student_a, Tensor? student_b, Tensor? target, Tensor? ce_weights, "
      "Tensor? kd_weights, "
      "Tensor? peer_weights, Tensor? certainty, float ce_weight, float kd_weight, float peer_weight, float "
      "temperature, "
      "float peer_temperature, float uncertainty_temperature, float label_smoothing, int uncertainty, bool "
      "trust_uncertain, "
      "bool normalize_weights, bool detach_peer, int ignore_index, int reduction) "
      "-> (Tensor loss, Tensor components, Tensor weight, Tensor entropy, Tensor rows)");
  // The same of a reduced loss, and the gradients asked for as if grad_output were 1; an empty tensor stands for each
  // that was not.
  m.def(
      "dual_student_loss_fused(Tensor? teacher, Tensor student_a, Tensor? student_b, Tensor? target, Tensor? "
      "ce_weights, "
      "Tensor? kd_weights, "
      "Tensor? peer_weights, Tensor? certainty, float ce_weight, float kd_weight, float peer_weight, float "
      "temperature, "
      "float peer_temperature, float uncertainty_temperature, float label_smoothing, int uncertainty, bool "
      "trust_uncertain, "
      "bool normalize_weights, bool detach_peer, int ignore_index, int reduction, bool grad_teacher, bool grad_a, bool "
      "grad_b) "
      "-> (Tensor loss, Tensor components, Tensor weight, Tensor entropy, Tensor rows, Tensor teacher, Tensor "
      "student_a, "
      "Tensor student_b)");
  m.def(
      "dual_student_loss_backward(Tensor grad_loss, Tensor rows, Tensor? teacher, Tensor student_a, Tensor? student_b, "
      "Tensor? target, "
      "Tensor? ce_weights, Tensor? kd_weights, Tensor? peer_weights, float ce_weight, float kd_weight, float "
      "peer_weight, "
      "float temperature, float peer_temperature, float label_smoothing, bool detach_peer, bool grad_teacher, bool "
      "grad_a, bool grad_b, "
      "bool grad_weights) -> (Tensor teacher, Tensor student_a, Tensor student_b, Tensor weights)");
  // The fused operator's gradients times grad_output, in place, but for rows that count for nothing. Does not wait for
  // grad_output to be known to the host.
  m.def(
      "dual_student_loss_scale(Tensor grad_loss, Tensor rows, Tensor(a!) teacher, Tensor(b!) student_a, Tensor(c!) "
      "student_b) -> ()");
  // Views of images (udskd/data/resize.py) with Pillow's bits. pixels: uint8 [bytes], images one after the other, the
  // first byte of each in `offsets`, int64 [images] on the same device; shapes: int64 [images, 2], views: int64
  // [images, 8], both on the CPU; out: uint8 [images, size, size, 3].
  m.def("crop_resize(Tensor pixels, Tensor offsets, Tensor shapes, Tensor views, Tensor(a!) out) -> ()");
  // Of one image, pixels uint8 [height, width, 3], into out, uint8 [size, size, 3].
  m.def(
      "crop_resize_one(Tensor pixels, int left, int top, int right, int bottom, int width, int height, int x, int y, "
      "Tensor(a!) out) -> ()");
  // Views as bytes to what the networks take (udskd/data/normalize.py): x * factor + offset, on the CPU. pixels: uint8
  // [rows, height, width, 3]; flips: bool [rows], which of them are mirrored; out: float32 [images, 3, height, width],
  // contiguous or channels_last. With mix, float32 [images], image i is that share of row i and the rest of row i + 1.
  m.def(
      "normalize_views(Tensor pixels, Tensor? flips, Tensor? mix, Tensor factor, Tensor offset, Tensor(a!) out) -> ()");
}
