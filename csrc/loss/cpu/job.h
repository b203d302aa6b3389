// What a pass over the rows is asked for on the CPU, in plain pointers: the same pass computes the loss alone, the loss
// with its gradients, or the gradients alone.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace udskd {

// What the forward pass keeps of each row for the backward pass, which computes the rest again.
enum SavedColumn : int { kSavedWeight, kSavedShare, kSavedColumns };

// Arrays are in the arithmetic's dtype, except gradients, which have their input's. Null for what is not asked for.
struct Job {
  const Problem& p;
  bool weights_only = false;        // before anything else, when weights are to be normalised
  void* terms = nullptr;            // [rows, kComponents + 1]: each row's components and loss
  void* entropy = nullptr;          // [rows]
  void* saved = nullptr;            // [rows, kSavedColumns]: written with the loss, read without
  const void* grad_loss = nullptr;  // [rows] or one number, grad_stride apart; 1 when it is null
  int64_t grad_stride = 0;
  double share = 1;                                     // of each row in the loss
  void *teacher = nullptr, *a = nullptr, *b = nullptr;  // gradients [rows, classes]
  void* coefficients = nullptr;                         // gradients [rows, 3] of ce, kd and peer
  bool gradients() const { return teacher || a || b; }
};

// For a dtype that operator.h should have refused. Compiled for every processor, so that the SIMD levels can call it.
[[noreturn]] void refuse_dtype(ScalarType dtype);

// One SIMD level. Scratch is aligned to 64 bytes; a wide row is one that all threads share.
struct Level {
  size_t (*scratch_bytes)(const Job&);
  void (*rows)(const Job&, int64_t begin, int64_t end, void* scratch);
  void (*wide_row)(const Job&, int64_t row, void* scratch);
  void (*exponential)(const float* x, int64_t n, float* to);  // 2^x, for its test
};

// Each is in a source file of its own, kernels_LEVEL.cpp.
namespace baseline {
extern const Level kLevel;
}
namespace avx2 {
extern const Level kLevel;
}
namespace avx512 {
extern const Level kLevel;
}

// Threads share a row only where each has this many classes of it.
constexpr int64_t kSharedClasses = 16384;

}  // namespace udskd
