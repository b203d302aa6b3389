// What the kernels are told, by value.
#pragma once

#include "../problem.h"
#include "../terms.h"

namespace udskd::cuda {

constexpr double kLn2 = 0.693147180559945309417;

constexpr int kArrivals = 32;  // so that the groups' counts are not in one line of the cache

// The numbers of Terms, as the float arithmetic takes them. s is a logit, less the row's largest, in units in which 2^s
// is the exponential at the base temperature.
struct Scales {
  float k = 0, teacher_k = 0;  // log2(e) / temperature
  float to_peer = 0, to_one = 0, to_spread = 0, to_nats = 0;
  float temperature = 0, peer_temperature = 0;
  float keep = 0, floor = 0;  // of the target: y keep + floor
  float log_classes = 0;
  int one = 0,
      spread = 0;  // how often 2^s is squared to be the exponential at 1, at the uncertainty's; -1: it is another
};

// One pass over all rows. Arrays are in the arithmetic's dtype, gradients in their logits'; null for what is not asked
// for.
struct Job {
  Problem p;
  Terms terms;
  Scales scales;
  void* saved;                                                   // [rows, kColumns]: written with the loss, then read
  void *to_teacher = nullptr, *to_a = nullptr, *to_b = nullptr;  // gradients [rows, classes]

  // with the loss, and for a grad_output of 1
  void *weight = nullptr, *entropy = nullptr, *loss = nullptr, *components = nullptr;
  double* totals = nullptr;            // [blocks, kTotals]
  unsigned* finished = nullptr;        // blocks that have; 0 at the launch
  unsigned long long* live = nullptr;  // rows that count, if there are so many that they are counted beforehand
  unsigned char* exchange = nullptr;   // of BlockGroup's groups: kExchangeBytes each,
  unsigned* arrivals = nullptr;        // and kArrivals; 0 at the launch
  unsigned group = 1;                  // blocks that share a row in BlockGroup
  int packets_of_thread = 0;           // room in shared memory

  // from what was saved
  const void* grad_loss = nullptr;  // [rows] or one number; 1 when it is null
  int64_t grad_stride = 0;
  void* coefficients = nullptr;  // gradients [rows, 3] of ce, kd and peer

  constexpr bool gradients() const { return to_teacher || to_a || to_b; }
  // What flows into a divergence's first argument, which only generic.h has.
  constexpr bool coupled() const { return to_teacher || (gradients() && terms.peer && !p.detach_peer); }
};

// What a kernel has to ask its job for, unless it is compiled for the usual loss alone: labels, a teacher, and two
// students, which teach each other at its temperature.
template <bool kUsual>
struct Has {
  const Job& job;
  constexpr bool teacher() const { return kUsual || job.terms.teacher; }
  constexpr bool two() const { return kUsual || job.terms.two; }
  constexpr bool kd() const { return kUsual || job.terms.kd; }
  constexpr bool ce() const { return kUsual || job.terms.ce; }
  constexpr bool soft() const { return !kUsual && job.terms.soft; }
  constexpr bool peers() const { return kUsual || job.terms.peer; }
  constexpr bool other_peers() const { return !kUsual && job.terms.peer == 2; }
  constexpr bool margin() const { return !kUsual && job.p.uncertainty == kMargin; }
};

constexpr bool is_usual(const Job& job) {
  const Has<false> has{job};
  return has.kd() && has.two() && has.ce() && !has.soft() && has.peers() && !has.other_peers() && !has.margin();
}

// Gradients that are ready for a grad_output of 1.
struct ScaleJob {
  const void *saved, *grad_loss;
  void* gradients[3];
  ScalarType dtypes[3];
  int64_t rows, classes;
};

}  // namespace udskd::cuda
