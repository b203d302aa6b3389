// The problem, as one struct: what the operators were asked, in plain pointers that every backend understands.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>

namespace udskd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
  kShare,                                        // of the loss: 1/n (mean), 1 (sum, none), 0 when ignored
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

// What both operators take, in the order of their schemas.
struct Arguments {
  std::optional<Tensor> teacher;
  Tensor a;
  std::optional<Tensor> b, target, ce, kd, peer, certainty;
};

inline bool is_wide(const std::optional<Tensor>& x) { return x && x->scalar_type() == ScalarType::Double; }

// The tensor with its classes adjacent in memory; a copy only if they are not.
inline void make_rows(std::optional<Tensor>& x) {
  if (x && x->size(1) > 1 && x->stride(1) != 1) x = torch::stable::contiguous(*x);
}

// Makes the layout readable, in place, so that the tensors stay alive while the problem points into them.
inline void make_readable(Arguments& args) {
  std::optional<Tensor> a = args.a;
  make_rows(a);
  args.a = *a;
  make_rows(args.teacher);
  make_rows(args.b);
  if (args.target && args.target->dim() == 2) make_rows(args.target);
  if (args.target && args.target->dim() == 1) args.target = torch::stable::contiguous(*args.target);
}

inline Matrix matrix(const std::optional<Tensor>& x, const Problem& p, const char* name) {
  if (!x) return {};
  STD_TORCH_CHECK(x->dim() == 2 && x->size(0) == p.rows && x->size(1) == p.classes, name, " must be [", p.rows, ", ",
                  p.classes, "]");
  return {x->const_data_ptr(), x->stride(0), x->scalar_type()};
}

inline Coefficient coefficient(double value, const std::optional<Tensor>& x, const Problem& p, const char* name) {
  if (!x) return {value, nullptr, 0};
  STD_TORCH_CHECK(x->dim() == 0 || (x->dim() == 1 && x->size(0) == p.rows), name, " must be one number or [", p.rows,
                  "]");
  STD_TORCH_CHECK(x->scalar_type() == (p.wide ? ScalarType::Double : ScalarType::Float), name,
                  " must have the arithmetic's dtype");
  return {value, x->const_data_ptr(), x->dim() == 0 ? 0 : x->stride(0)};
}

// The tensors' part of the problem; the numbers are filled in by the operators. Call make_readable first.
inline Problem read(const Arguments& args, double ce, double kd, double peer) {
  STD_TORCH_CHECK(args.a.dim() == 2, "student_a must be [rows, classes]");
  Problem p;
  p.rows = args.a.size(0), p.classes = args.a.size(1);
  p.wide = is_wide(args.a) || is_wide(args.teacher) || is_wide(args.b);
  p.teacher = matrix(args.teacher, p, "teacher"), p.a = matrix(args.a, p, "student_a"),
  p.b = matrix(args.b, p, "student_b");
  if (args.target && args.target->dim() == 2) {
    p.target = matrix(args.target, p, "target");
  } else if (args.target) {
    STD_TORCH_CHECK(args.target->size(0) == p.rows && args.target->scalar_type() == ScalarType::Long,
                    "labels must be int64 [", p.rows, "]");
    p.labels = args.target->const_data_ptr<int64_t>();
  }
  p.ce = coefficient(ce, args.ce, p, "ce_weight"), p.kd = coefficient(kd, args.kd, p, "kd_weight");
  p.peer = coefficient(peer, args.peer, p, "peer_weight"),
  p.certainty = coefficient(1, args.certainty, p, "uncertainty");
  return p;
}

struct Outputs {
  Tensor loss, components, weight, entropy, rows;
};

inline ScalarType arithmetic(const Problem& p) { return p.wide ? ScalarType::Double : ScalarType::Float; }

// Contiguous. Not torch::stable::new_empty, which goes through the dispatcher and is several times slower: for small
// batches these allocations are most of a call.
inline Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[2] = {sizes.size() == 2 ? sizes.begin()[1] : 1, 1};
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const int32_t code = dtype == ScalarType::Double  ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Float ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Half  ? aoti_torch_dtype_float16()
                                                    : aoti_torch_dtype_bfloat16();
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, code, device, index, &out));
  return Tensor(out);
}

// `columns` of each row are kept for the backward pass.
inline Outputs allocate(const Problem& p, const Tensor& like, int64_t columns) {
  const ScalarType dtype = arithmetic(p);
  const bool each = p.reduction == kUnreduced;
  return {each ? empty_like(like, {p.rows}, dtype) : empty_like(like, {}, dtype),
          each ? empty_like(like, {kComponents, p.rows}, dtype) : empty_like(like, {kComponents}, dtype),
          empty_like(like, {p.rows}, dtype), empty_like(like, {p.rows}, dtype),
          empty_like(like, {p.rows, columns}, dtype)};
}

// The gradients asked for, in each input's dtype; an empty tensor stands for each that was not.
struct Gradients {
  Tensor teacher, a, b, coefficients;  // coefficients: [rows, 3] for ce, kd and peer
};

inline Gradients allocate_gradients(const Problem& p, const Arguments& args, bool teacher, bool a, bool b,
                                    bool coefficients) {
  auto like = [&](const std::optional<Tensor>& x, bool wanted) {
    return wanted && x ? empty_like(*x, {p.rows, p.classes}, x->scalar_type()) : empty_like(args.a, {0}, arithmetic(p));
  };
  return {like(args.teacher, teacher), like(args.a, a), like(args.b, b),
          coefficients ? empty_like(args.a, {p.rows, 3}, arithmetic(p)) : empty_like(args.a, {0}, arithmetic(p))};
}

inline void* pointer(Tensor& gradient) { return gradient.dim() == 2 ? gradient.mutable_data_ptr() : nullptr; }

}  // namespace udskd
