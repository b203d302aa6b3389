// One row after the other at one SIMD level: what its sweeps are, and what is done between them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../row_math.h"
#include "../terms.h"
#include "job.h"
#include "sweep_gradients.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

inline float logarithm1(float x) { return __builtin_log1pf(x); }
inline double logarithm1(double x) { return __builtin_log1p(x); }
inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

constexpr int64_t kAlignedFrom = 512;       // classes: below, one more vector costs more than alignment gains
constexpr int64_t kStreamedFrom = 4 << 20;  // rows times classes: gradients that no cache would keep

// A row's sums are formed chunk by chunk, by however many threads: so they do not depend on the threads, and their
// rounding errors grow with the length of a chunk and the number of chunks rather than with their product.
template <class Acc>
constexpr int64_t kChunk = 64 * Lanes<Acc>::kCount;

inline int64_t nearest(int64_t n, int64_t to) { return (n + to / 2) / to; }

// What all rows of a job have in common.
template <class Acc>
struct Plan {
  const Job& job;
  const Problem& p;
  int64_t classes, padded, stride, chunks;  // stride: of the arrays in scratch
  bool aligned, streaming;                  // see Worker::align; gradients past the cache
  bool kd, two, soft, spread;               // soft: the target is a distribution; spread: the teacher's is needed
  bool keeps_one, peer_is_one;              // exponentials at 1 have an array; they are those at tau
  int peer, one, spread_power;              // peer: 0 none, 1 at the base temperature, 2 at its own; one: e^one is at 1
  Acc k, teacher_k, to_nats;       // log2(e) / temperature of students and teacher; s to_nats = logit - largest
  Acc to_peer, to_one, to_spread;  // s at another temperature = s * this
  Acc log_classes;

  explicit Plan(const Job& asked) : job(asked), p(asked.p), classes(p.classes) {
    padded = classes < Lanes<Acc>::kCount ? Lanes<Acc>::kCount : classes, chunks = nearest(classes, kChunk<Acc>);
    if (chunks == 0) chunks = 1;
    stride = (padded + 15) / 16 * 16 + 32;
    if ((stride + 128) % 1024 < 256) stride += 272;  // arrays a multiple of 4 KiB apart would evict each other
    aligned = sizeof(Acc) == 4 && classes >= kAlignedFrom, streaming = p.rows * classes >= kStreamedFrom;
    const Terms terms(p, job.weights_only, job.entropy != nullptr);
    kd = terms.kd, two = terms.two, soft = terms.soft, spread = terms.spread;
    peer = terms.peer, one = terms.one, spread_power = terms.spread_power;
    constexpr double kLog2E = 1.44269504088896340736;
    k = Acc(kLog2E / terms.base), teacher_k = Acc(kLog2E / terms.teacher_base), to_nats = Acc(terms.base * kLn2);
    keeps_one = one != 1 && (one != kFree || (peer == 2 && p.peer_temperature == 1));
    peer_is_one = keeps_one && p.peer_temperature == 1;
    to_peer = Acc(terms.to_peer), to_one = Acc(terms.to_one), to_spread = Acc(terms.to_spread),
    log_classes = Acc(__builtin_log(double(classes)));
  }
};

template <class Acc>
struct InTurn {
  template <class F>
  void operator()(int64_t n, F f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
};

template <class Acc>
struct AtOnce {
  template <class F>
  void operator()(int64_t n, F f) const {
    torch::stable::parallel_for(0, n, kSharedClasses / kChunk<Acc>, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  }
};

// f of a row of logits, as a pointer of its dtype. Logits in double have arithmetic in double.
template <class Acc, class F>
INLINE auto typed(const Matrix& m, int64_t row, F f) {
  const int64_t at = row * m.stride;
  if (m.dtype == ScalarType::BFloat16) return f(static_cast<const BFloat16*>(m.data) + at);
  if (m.dtype == ScalarType::Half) return f(static_cast<const Half*>(m.data) + at);
  if constexpr (std::is_same_v<Acc, double>)
    if (m.dtype == ScalarType::Double) return f(static_cast<const double*>(m.data) + at);
  if (m.dtype != ScalarType::Float) refuse_dtype(m.dtype);
  return f(static_cast<const float*>(m.data) + at);
}

// The same of class probabilities, which may be in double beside any logits.
template <class Acc, class F>
INLINE auto typed_target(const Matrix& m, int64_t row, F f) {
  if (m.dtype == ScalarType::Double) return f(static_cast<const double*>(m.data) + row * m.stride);
  return typed<Acc>(m, row, f);
}

// A network's row in scratch.
template <class Acc>
struct Network {
  Acc *s = nullptr, *e = nullptr, *peer = nullptr, *one = nullptr;
  Acc sum = 1, sum_peer = 1, sum_one = 1, largest = 0;
  bool excludes = false;
};

// `Each` runs the chunks of a row: in turn, or at once on all threads. Sums are the same either way.
template <class Acc, class Each>
class Worker {
 public:
  Worker(const Plan<Acc>& plan, Acc* scratch, Acc* logs) : plan_(plan), p_(plan.p), scratch_(scratch), logs_(logs) {
    assign(0);
  }
  static int64_t scratch_size(const Plan<Acc>& plan) {
    const int64_t arrays = 3 + plan.soft + 2 * (2 + (plan.peer == 2) + plan.keeps_one) + 3 * plan.job.gradients();
    return arrays * plan.stride + (plan.chunks * kPart + 15) / 16 * 16 + 16;
  }
  static constexpr int64_t kPart = 8;  // room for what a sweep returns of one chunk

  // The row up to its sums, of which it leaves those whose logarithms it will need; false if it counts for nothing.
  bool begin(int64_t row);
  // The rest, once there are the logarithms; false if something was not finite, which a row read in place must not
  // have.
  bool end();
  void look_for_infinities() { careful_ = true; }

  // What is left for logarithm(): the sum of the teacher's spread, both students' at 1, and of S_a / S_t, S_b / S_t at
  // T and S_b / S_a at tau.
  enum { kLogSpread, kLogA, kLogB, kGapTA, kGapTB, kGapAB, kLogs = 16 };

 private:
  const Plan<Acc>& plan_;
  const Problem& p_;
  Acc *scratch_, *raw_, *y_, *gradient_[3], *parts_;
  Network<Acc> t_, a_, b_;
  Sums<Acc> spread_sums_{};
  Spread<Acc> spread_{};
  Acc* logs_;
  int64_t row_ = 0;
  int32_t head_ = 0;
  bool streaming_ = false;
  Acc scale_ = 0, out_[kColumns] = {};
  bool careful_ = false;  // the row may have infinities: they are looked for

  // The sum of f(span) over the chunks of `classes`.
  template <class R, class F>
  R reduce(int64_t classes, F f) {
    if (plan_.chunks == 1) return f(Span{0, int32_t(classes), head_});
    static_assert(sizeof(R) <= kPart * sizeof(Acc));
    R* parts = reinterpret_cast<R*>(parts_);
    Each()(plan_.chunks, [&](int64_t i) {
      const int64_t end = i + 1 < plan_.chunks ? (i + 1) * kChunk<Acc> + head_ : classes;
      const int64_t begin = i ? i * kChunk<Acc> + head_ : 0;
      parts[i] = f(Span{begin, int32_t(end - begin), i ? 0 : head_});
    });
    R total = parts[0];
    for (int64_t i = 1; i < plan_.chunks; ++i) total += parts[i];
    return total;
  }
  template <class F>
  void every(int64_t classes, F f) {
    struct Nothing {
      void operator+=(Nothing) {}
    };
    reduce<Nothing>(classes, [&](Span span) {
      f(span);
      return Nothing();
    });
  }

  // The arrays in scratch, each from its `offset`th place on.
  void assign(int64_t offset) {
    Acc* next = scratch_;
    parts_ = next, next += (plan_.chunks * kPart + 15) / 16 * 16 + offset;
    const auto array = [&] { return std::exchange(next, next + plan_.stride); };
    raw_ = array(), t_.s = array(), t_.e = array(), y_ = plan_.soft ? array() : nullptr;
    for (Network<Acc>* x : {&a_, &b_}) {
      x->s = array(), x->e = array(), x->one = plan_.keeps_one ? array() : x->e;
      x->peer = plan_.peer != 2 ? x->e : plan_.peer_is_one ? x->one : array();
    }
    for (Acc*& g : gradient_) g = plan_.job.gradients() ? array() : nullptr;
  }

  Ahead ahead(const Matrix& m, int64_t row) const {
    const int64_t known = row < p_.rows ? row : p_.rows - 1, size = size_of(m.dtype);
    return {static_cast<const char*>(m.data) + known * m.stride * size, size};
  }

  template <bool Moment>
  Sums<Acc> load_network(const Matrix& m, Acc k, int power, Network<Acc>& x, Ahead next);
  void load_teacher();
  void load_student(const Matrix& m, Network<Acc>& x, Ahead next);
  void weigh();
  void load_target();
  Acc log_sum(Network<Acc>& x);
  void cross_entropies();
  Row<Acc> arrange() const;
  template <bool Grad, class Out>
  Divergences<Acc> sweep_row(const Row<Acc>& r, Out* to_a, Out* to_b, Ahead next);
  Divergences<Acc> diverge(const Row<Acc>& r);
  Divergences<Acc> mended(const Row<Acc>& r, Divergences<Acc> kl);
  bool excluded(const Acc* mass, const Network<Acc>& x) const;
  void keep(const Acc* from, void* to, const Matrix& like);
  void ignore();
  void align(int64_t row);
  void finish();
};

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
