// From the operators' tensors to a Problem, and the tensors that they return.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>

#include "problem.h"

namespace udskd {

using torch::stable::Tensor;

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
  Tensor made(out);
#ifdef UDSKD_EMULATE  // what a kernel does not write is to be seen
  if (made.numel()) std::memset(made.mutable_data_ptr(), 0xCD, size_t(made.numel()) * size_t(made.element_size()));
#endif
  return made;
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
