// The schemas of all operators. The backends register the kernels (loss/, image/), Python the derivatives
// (udskd/loss/ops.py).
#include "common/registration.h"

// The arguments that the operators of the loss share. Logits: [rows, classes]; target: int64 [rows], or a distribution
// [rows, classes]. ce_weights, kd_weights, peer_weights: one number or [rows], in place of the coefficient among the
// scalars; certainty: [rows], in place of the teacher's. These four have the dtype of the arithmetic. scalars and
// modes: loss/options.h.
#define UDSKD_LOSS_ARGUMENTS                                                                                       \
  "Tensor? teacher, Tensor student_a, Tensor? student_b, Tensor? target, Tensor? ce_weights, Tensor? kd_weights, " \
  "Tensor? peer_weights, Tensor? certainty, float[] scalars, int[] modes"
#define UDSKD_LOSS_OUTPUTS "Tensor loss, Tensor components, Tensor weight, Tensor entropy, Tensor rows"

#define UDSKD_SCHEMAS(...) STABLE_TORCH_LIBRARY(__VA_ARGS__)  // which expands UDSKD_OPERATORS
UDSKD_SCHEMAS(UDSKD_OPERATORS, m) {
  // rows: what the backward operator needs of each row beside the logits.
  m.def("dual_student_loss(" UDSKD_LOSS_ARGUMENTS ") -> (" UDSKD_LOSS_OUTPUTS ")");
  // The same, and the gradients of a reduced loss for a grad_output of 1. needs: for teacher, student_a and student_b,
  // whether the gradient is computed; it is an empty tensor where it is not.
  m.def("dual_student_loss_fused(" UDSKD_LOSS_ARGUMENTS ", bool[] needs) -> (" UDSKD_LOSS_OUTPUTS
        ", Tensor teacher, Tensor student_a, Tensor student_b)");
  // The gradients from the logits. needs: for teacher, student_a, student_b and all coefficients, whose gradients are
  // the columns of `weights` [rows, 3].
  m.def("dual_student_loss_backward(Tensor grad_loss, Tensor rows, " UDSKD_LOSS_ARGUMENTS
        ", bool[] needs) -> (Tensor teacher, Tensor student_a, Tensor student_b, Tensor weights)");
  // Multiplies the gradients of the fused operator by grad_loss in place, except those of ignored rows. On a GPU, the
  // host does not wait for the value of grad_loss.
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
