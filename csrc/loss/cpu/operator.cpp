// The operators on the CPU: the SIMD levels, the threads over rows, and what needs all rows.
#include "../operator.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../../common/scratch.h"
#include "../../common/simd.h"
#include "job.h"

namespace udskd {

void refuse_dtype(ScalarType dtype) {
  STD_TORCH_CHECK(false, "the kernels do not read ", torch::headeronly::toString(dtype));
}

namespace {

const Level& level() {
#if UDSKD_X86
  if (simd_level() == kAvx512) return avx512::kLevel;
  if (simd_level() == kAvx2) return avx2::kLevel;
#endif
  return baseline::kLevel;
}

constexpr size_t kKept = 8 << 20;  // bytes of scratch that a thread keeps from call to call

// Threads share rows, or, where there are fewer rows than threads, the classes of one row after the other.
void run(const Job& job) {
  const Level& now = level();
  const size_t bytes = now.scratch_bytes(job);
  const int64_t rows = job.p.rows;
  if (job.p.classes >= 2 * kSharedClasses && rows < int64_t(torch::stable::get_num_threads())) {
    with_scratch<kKept>(bytes, [&](void* scratch) {
      for (int64_t row = 0; row < rows; ++row) now.wide_row(job, row, scratch);
    });
    return;
  }
  const int64_t grain = job.p.classes < 8192 ? 8192 / job.p.classes : 1;
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    with_scratch<kKept>(bytes, [&](void* scratch) { now.rows(job, begin, end, scratch); });
  });
}

// The number of rows that are not ignored. Looks at every label.
int64_t check_labels(const Problem& p) {
  if (!p.labels) return p.rows;
  int64_t live = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t label = p.labels[row];
    live += label != p.ignore_index;
    if (label != p.ignore_index && (label < 0 || label >= p.classes)) refuse_label(p, row, true);
  }
  return live;
}

// The labels once more, which need not be those of the forward pass. Rows that were ignored there stay so.
template <class Acc>
void check_labels_again(const Problem& p, const Acc* saved) {
  for (int64_t row = 0; p.labels && row < p.rows; ++row) {
    const bool live = saved[row * kSavedColumns + kSavedShare] != 0;
    if (live && (p.labels[row] < 0 || p.labels[row] >= p.classes)) refuse_label(p, row, false);
  }
}

// The weights of all rows divided by their mean. What is not a number does not count.
template <class Acc>
void normalize(const Problem& p, Acc* saved) {
  double sum = 0, counted = 0;
  for (int64_t row = 0; row < p.rows; ++row) {
    const Acc *s = saved + row * kSavedColumns, weight = s[kSavedWeight];
    if (s[kSavedShare] != 0 && weight == weight) sum += double(weight), counted += 1;
  }
  for (int64_t row = 0; sum > 0 && row < p.rows; ++row)
    saved[row * kSavedColumns + kSavedWeight] = Acc(double(saved[row * kSavedColumns + kSavedWeight]) * counted / sum);
}

// The loss and its components, in a fixed order: the result does not depend on the number of threads.
template <class Acc>
void reduce(const Problem& p, const Acc* terms, int64_t live, Outputs& out) {
  Acc *loss = out.loss.mutable_data_ptr<Acc>(), *components = out.components.mutable_data_ptr<Acc>();
  const bool each = p.reduction == kUnreduced;
  double totals[kComponents + 1] = {};
  for (int64_t row = 0; row < p.rows; ++row) {
    const Acc* of_row = terms + row * (kComponents + 1);
    for (int k = 0; each && k < kComponents; ++k) components[k * p.rows + row] = of_row[k];
    if (each) loss[row] = of_row[kComponents];
    for (int k = 0; k <= kComponents; ++k) totals[k] += double(of_row[k]);
  }
  if (each) return;
  // 0 / 0 is NaN, as in F.cross_entropy when every row is ignored
  const double by = p.reduction == kMean ? double(live) : 1;
  for (int k = 0; k < kComponents; ++k) components[k] = Acc(totals[k] / by);
  *loss = Acc(totals[kComponents] / by);
}

template <class Acc>
void forward(Problem p, Outputs& out, Gradients& to) {
  const int64_t live = check_labels(p);
  const std::unique_ptr<Acc[]> terms(new Acc[size_t(p.rows * (kComponents + 1))]);
  Acc* saved = out.rows.mutable_data_ptr<Acc>();
  Job job{p};
  job.terms = terms.get(), job.saved = saved, job.entropy = out.entropy.mutable_data_ptr<Acc>();
  job.share = p.reduction == kMean ? 1 / double(live) : 1;
  if (p.normalize_weights && p.teacher) {
    job.weights_only = true, run(job), job.weights_only = false;
    normalize<Acc>(p, saved);
    p.uncertainty = kGiven, p.certainty = {1, saved, kSavedColumns};
  }
  job.teacher = pointer(to.teacher), job.a = pointer(to.a), job.b = pointer(to.b);
  run(job);
  Acc* weight = out.weight.mutable_data_ptr<Acc>();
  for (int64_t row = 0; row < p.rows; ++row) weight[row] = saved[row * kSavedColumns + kSavedWeight];
  reduce<Acc>(p, terms.get(), live, out);
}

Outputs forward_cpu(const Problem& p, const Tensor& like, Gradients& to) {
  Outputs out = allocate(p, like, kSavedColumns);
  p.wide ? forward<double>(p, out, to) : forward<float>(p, out, to);
  return out;
}

void backward_cpu(Problem p, const Tensor& grad_loss, const Tensor& saved, Gradients& to) {
  p.wide ? check_labels_again(p, saved.const_data_ptr<double>()) : check_labels_again(p, saved.const_data_ptr<float>());
  p.uncertainty = kGiven, p.certainty = {1, saved.const_data_ptr(), kSavedColumns};
  Job job{p};
  job.saved = const_cast<void*>(saved.const_data_ptr());
  job.grad_loss = grad_loss.const_data_ptr(), job.grad_stride = grad_loss.dim() == 0 ? 0 : grad_loss.stride(0);
  job.teacher = pointer(to.teacher), job.a = pointer(to.a), job.b = pointer(to.b);
  job.coefficients = pointer(to.coefficients);
  run(job);
}

}  // namespace

void exponential_of_level(const float* x, int64_t n, float* to) { level().exponential(x, n, to); }

}  // namespace udskd

UDSKD_REGISTER(CPU, udskd::forward_cpu, udskd::backward_cpu, udskd::kSavedColumns)
