// A row from beginning to end, and all rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "row_gradients.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

// A row that counts for nothing, whatever its logits hold.
STEP void Worker<Acc, Each>::ignore() {
  const Job& job = plan_.job;
  const auto zero = [&](void* to, int64_t each) {
    if (to) std::memset(static_cast<char*>(to) + row_ * each, 0, size_t(each));
  };
  if (job.terms) zero(job.saved, kSavedColumns * sizeof(Acc));
  zero(job.terms, (kComponents + 1) * sizeof(Acc)), zero(job.entropy, sizeof(Acc));
  zero(job.coefficients, 3 * sizeof(Acc)), zero(job.teacher, plan_.classes * size_of(p_.teacher.dtype));
  zero(job.a, plan_.classes * size_of(p_.a.dtype)), zero(job.b, plan_.classes * size_of(p_.b.dtype));
}

// So that vectors begin where the students' gradients (and with them, usually, all logits) are aligned in memory.
STEP void Worker<Acc, Each>::align(int64_t row) {
  const int64_t size = size_of(p_.a.dtype), offset = row * plan_.classes % Lanes<Acc>::kCount;
  static_assert(64 % (Lanes<Acc>::kCount * sizeof(Acc)) == 0);
  head_ = offset ? int32_t(Lanes<Acc>::kCount - offset) : 0;
  const auto aligned = [&](void* to) {
    return reinterpret_cast<uintptr_t>(to) % uintptr_t(Lanes<Acc>::kCount * size) == 0;
  };
  streaming_ = plan_.streaming && aligned(plan_.job.a) && aligned(plan_.job.b);
  assign(offset);
}

STEP bool Worker<Acc, Each>::begin(int64_t row) {
  const Job& job = plan_.job;
  row_ = row, scale_ = Acc(job.share);
  if (plan_.aligned) align(row);
  const Acc* saved = static_cast<const Acc*>(job.saved) + row * kSavedColumns;
  if (!job.terms) scale_ = saved[kSavedShare];
  if (job.terms ? p_.labels && p_.labels[row] == p_.ignore_index : scale_ == 0) return ignore(), false;
  if (job.grad_loss) scale_ *= static_cast<const Acc*>(job.grad_loss)[row * job.grad_stride];
  const Matrix& first = p_.teacher ? p_.teacher : p_.a;
  if (p_.teacher && (plan_.kd || plan_.spread)) load_teacher();
  if (!job.weights_only) load_student(p_.a, a_, ahead(plan_.two ? p_.b : first, plan_.two ? row : row + 1));
  if (!job.weights_only && plan_.two) load_student(p_.b, b_, ahead(first, row + 1));
  logs_[kLogSpread] = plan_.spread ? spread_sums_.power : 1, logs_[kLogA] = a_.sum_one, logs_[kLogB] = b_.sum_one;
  logs_[kGapTA] = a_.sum / t_.sum, logs_[kGapTB] = b_.sum / t_.sum, logs_[kGapAB] = b_.sum_peer / a_.sum_peer;
  return true;
}

STEP bool Worker<Acc, Each>::end() {
  for (Acc& x : out_) x = 0;
  weigh();
  if (!plan_.job.weights_only) {
    if (p_.has_ce()) cross_entropies();
    const Divergences<Acc> kl = diverge(arrange());
    out_[kKlTA] = kl.ta, out_[kKlTB] = kl.tb, out_[kKlAB] = kl.ab, out_[kKlBA] = kl.ba;
  }
  finish();
  careful_ = false;
  const Acc seen = out_[kKlTA] + out_[kKlTB] + out_[kKlAB] + out_[kKlBA] + out_[kEntropy] + out_[kCeA] + out_[kCeB];
  return seen - seen == 0;
}

STEP void Worker<Acc, Each>::finish() {
  const Job& job = plan_.job;
  if (job.terms) {
    Acc* saved = static_cast<Acc*>(job.saved) + row_ * kSavedColumns;
    saved[kSavedWeight] = out_[kWeight], saved[kSavedShare] = Acc(job.share);
  }
  if (job.weights_only) return;
  Acc components[kComponents + 1];
  row_components<Acc>(p_, out_, components);
  components[kComponents] = row_loss<Acc>(p_, row_, components);
  if (job.terms) std::memcpy(static_cast<Acc*>(job.terms) + row_ * (kComponents + 1), components, sizeof components);
  if (job.entropy) static_cast<Acc*>(job.entropy)[row_] = out_[kEntropy];
  if (!job.coefficients) return;
  for (int k = 0; k < 3; ++k)
    static_cast<Acc*>(job.coefficients)[3 * row_ + k] = scale_ * (components[2 * k] + components[2 * k + 1]);
}

#undef STEP

// Rows are short work and long waiting: for sums to be folded, logarithms, quotients. So several short ones go
// together.
constexpr int64_t kTogether = 4, kShort = 512;

inline int64_t together(int64_t classes) { return classes <= kShort ? kTogether : 1; }

inline void logarithm(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<float>::kCount) store<float>(x + i, log(load<float>(x + i)));
}
inline void logarithm(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = __builtin_log(x[i]);
}

template <class Acc, class Each>
void run(const Job& job, int64_t begin, int64_t end, void* scratch) {
  using One = Worker<Acc, Each>;
  const Plan<Acc> plan(job);
  alignas(64) Acc logs[kTogether * One::kLogs];
  for (Acc& x : logs) x = 1;
  const int64_t block = together(plan.classes), own = block > 1 ? One::scratch_size(plan) : 0;
  Acc* const at = static_cast<Acc*>(scratch);
  One workers[kTogether] = {{plan, at, logs},
                            {plan, at + own, logs + One::kLogs},
                            {plan, at + 2 * own, logs + 2 * One::kLogs},
                            {plan, at + 3 * own, logs + 3 * One::kLogs}};
  for (int64_t row = begin; row < end; row += block) {
    const int64_t count = end - row < block ? end - row : block;
    bool counts[kTogether] = {};
    for (int64_t i = 0; i < count; ++i) counts[i] = workers[i].begin(row + i);
    logarithm(logs, block * One::kLogs);
    for (int64_t i = 0; i < count; ++i) {
      if (!counts[i] || workers[i].end()) continue;
      workers[i].look_for_infinities();
      workers[i].begin(row + i);
      logarithm(logs + i * One::kLogs, One::kLogs);
      workers[i].end();
    }
  }
  if (plan.streaming) streamed();
}

template <class Acc>
size_t scratch_of(const Job& job) {
  const Plan<Acc> plan(job);
  return size_t(together(plan.classes) * Worker<Acc, InTurn<Acc>>::scratch_size(plan)) * sizeof(Acc);
}

inline size_t scratch_bytes(const Job& job) { return job.p.wide ? scratch_of<double>(job) : scratch_of<float>(job); }

inline void rows(const Job& job, int64_t begin, int64_t end, void* scratch) {
  job.p.wide ? run<double, InTurn<double>>(job, begin, end, scratch)
             : run<float, InTurn<float>>(job, begin, end, scratch);
}

inline void wide_row(const Job& job, int64_t row, void* scratch) {
  job.p.wide ? run<double, AtOnce<double>>(job, row, row + 1, scratch)
             : run<float, AtOnce<float>>(job, row, row + 1, scratch);
}

inline void exponential_of(const float* x, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += Lanes<float>::kCount) store<float>(to + i, exp2<float>(load<float>(x + i)));
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
