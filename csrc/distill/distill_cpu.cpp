// The operator on the CPU, in the recompute form: statistics of each row in the forward pass, gradients in the backward
// pass.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../backend/simd.h"
#include "operator.h"

#define HD

namespace udskd {
namespace {

namespace baseline {
#include "rows_cpu.h"
}

#if UDSKD_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#include "rows_cpu.h"
}
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace avx512 {
#include "rows_cpu.h"
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

struct Level {
  void (*forward)(const Problem&, int64_t, int64_t, void*);
  void (*backward)(const Problem&, int64_t, int64_t, const Backward&);
};

Level level() {
#if UDSKD_X86
  if (simd_level() == kAvx512) return {avx512::forward, avx512::backward};
  if (simd_level() == kAvx2) return {avx2::forward, avx2::backward};
#endif
  return {baseline::forward, baseline::backward};
}

template <class F>
void for_rows(const Problem& p, F f) {
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, p.classes));
  torch::stable::parallel_for(0, p.rows, grain, f);
}

void check_labels(const Problem& p) {
  if (!p.labels) return;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t label = p.labels[row];
    STD_TORCH_CHECK(label == p.ignore_index || (label >= 0 && label < p.classes), "target: row ", row, " has label ",
                    label, ", expected 0 to ", p.classes - 1, " or ignore_index ", p.ignore_index);
  }
}

// What needs all rows: the normalisation of the weights, each row's share, and the reduction in a fixed order.
template <class Acc>
void finish_rows(const Problem& p, Outputs& out) {
  Acc *saved = out.rows.mutable_data_ptr<Acc>(), *weight = out.weight.mutable_data_ptr<Acc>(),
      *entropy = out.entropy.mutable_data_ptr<Acc>();
  double live = 0, weights = 0, weighed = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const Acc* s = saved + row * kColumns;
    live += s[kShare];
    if (s[kShare] != 0 && s[kWeight] == s[kWeight]) weights += s[kWeight], weighed += 1;
  }
  const double scale = p.normalize_weights && p.teacher && weights > 0 ? weighed / weights : 1;
  const double share = p.reduction == kMean ? 1 / live : 1;
  for (int64_t row = 0; row < p.rows; ++row) {
    Acc* s = saved + row * kColumns;
    if (s[kShare] != 0) s[kShare] = Acc(share), s[kWeight] = Acc(s[kWeight] * scale);
    weight[row] = s[kWeight], entropy[row] = s[kEntropy];
  }
}

// The loss and its components, in a fixed order: the result does not depend on the number of threads.
template <class Acc>
void reduce(const Problem& p, Outputs& out) {
  const Acc* saved = out.rows.const_data_ptr<Acc>();
  Acc *loss = out.loss.mutable_data_ptr<Acc>(), *components = out.components.mutable_data_ptr<Acc>();
  const bool each = p.reduction == kUnreduced;
  double live = 0, total = 0, totals[kComponents] = {};
  for (int64_t row = 0; row < p.rows; ++row) {
    const Acc* s = saved + row * kColumns;
    Acc c[kComponents] = {};
    const bool counts = s[kShare] != 0;
    if (counts) baseline::row_components<Acc>(p, s, c);
    const Acc of_row = counts ? baseline::row_loss<Acc>(p, row, c) : Acc(0);
    for (int k = 0; k < kComponents; ++k) {
      if (each) components[k * p.rows + row] = c[k];
      totals[k] += c[k];
    }
    if (each) loss[row] = of_row;
    total += of_row, live += counts;
  }
  if (each) return;
  const double by = p.reduction == kMean ? live : 1;  // 0 / 0 is NaN, as in F.cross_entropy when every row is ignored
  *loss = Acc(total / by);
  for (int k = 0; k < kComponents; ++k) components[k] = Acc(totals[k] / by);
}

Outputs forward_cpu(const Problem& p, const Tensor& like) {
  check_labels(p);
  Outputs out = allocate(p, like);
  void* saved = out.rows.mutable_data_ptr();
  const Level now = level();
  for_rows(p, [&](int64_t begin, int64_t end) { now.forward(p, begin, end, saved); });
  p.wide ? finish_rows<double>(p, out) : finish_rows<float>(p, out);
  p.wide ? reduce<double>(p, out) : reduce<float>(p, out);
  return out;
}

void backward_cpu(const Problem& p, const Tensor& grad_loss, const Tensor& saved, Gradients& to) {
  const Backward job = backward_job(grad_loss, saved, to);
  const Level now = level();
  for_rows(p, [&](int64_t begin, int64_t end) { now.backward(p, begin, end, job); });
}

}  // namespace
}  // namespace udskd

UDSKD_REGISTER(CPU, udskd::forward_cpu, udskd::backward_cpu)
