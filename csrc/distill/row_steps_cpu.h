// The steps of Worker::row. Included as vector.h is, after rows_cpu.h.

#define STEP                       \
  template <class Acc, class Each> \
  inline

// A network's s, exponentials and sums at its base temperature. Rows are read in place, but for those that a vector
// cannot read (short ones), that may have -inf in them, and those whose dtype is not worth a sweep of its own.
template <class Acc, class Each>
template <bool Moment>
Sums<Acc> Worker<Acc, Each>::load_network(const Matrix& m, Acc k, int power, Student<Acc>& x, Ahead next) {
  return typed<Acc>(m, row_, [&](auto* from) {
    x.excludes = false;
    x.largest = reduce<Largest<Acc>>(plan_.classes, [&](Span span) {
                  return largest<Acc>(from, span);
                }).value;
    const auto sums = [&](auto* logits) {
      return reduce<Sums<Acc>>(plan_.padded, [&](Span span) {
        return exponentials_and_powers<Acc, Moment>(power, logits, x.largest, k, x.s, x.e, x.one, span, next);
      });
    };
    if constexpr (std::is_same_v<Acc, float> && !std::is_same_v<decltype(from), const Half*>)
      if (plan_.classes >= Lanes<Acc>::kCount && !careful_) return sums(from);
    x.excludes = reduce<Found>(plan_.classes, [&](Span span) {
                   return copy_row<Acc>(from, span, raw_);
                 }).yes > 0;
    return sums(static_cast<const Acc*>(raw_));
  });
}

STEP void Worker<Acc, Each>::load_teacher() {
  spread_sums_ = load_network<true>(p_.teacher, plan_.teacher_k, plan_.spread_power, t_, ahead(p_.a, row_));
  t_.sum = spread_sums_.base;
  if (plan_.spread && !plan_.spread_power)
    spread_sums_ = reduce<Sums<Acc>>(plan_.padded, [&](Span span) {
      return other_exponentials<Acc, true>(t_.s, plan_.to_spread, nullptr, span);
    });
}

STEP void Worker<Acc, Each>::load_student(const Matrix& m, Student<Acc>& x, Ahead next) {
  const Sums<Acc> sums = load_network<false>(m, plan_.k, plan_.one > 1 ? plan_.one : 0, x, next);
  const auto other = [&](Acc ratio, Acc* to) {
    return reduce<Sums<Acc>>(plan_.padded, [&](Span span) {
             return other_exponentials<Acc, false>(x.s, ratio, to, span);
           })
        .power;
  };
  x.sum = sums.base;
  x.sum_one = plan_.one == 1 ? sums.base : plan_.one ? sums.power : other(plan_.to_one, x.one);
  x.sum_peer = plan_.peer != 2 ? sums.base : x.peer == x.one ? x.sum_one : other(plan_.to_peer, x.peer);
}

// How sure the teacher is, and the weight that follows.
STEP void Worker<Acc, Each>::weigh() {
  spread_ = {};
  if (plan_.spread) {
    const Acc over = 1 / spread_sums_.power, scale = plan_.spread_power ? plan_.to_spread : Acc(1);
    spread_ = {logs_[kLogSpread] - Acc(kLn2) * scale * spread_sums_.moment * over, over, over};
  }
  if (plan_.spread && p_.uncertainty == kMargin) {
    const auto next = reduce<RunnerUp<Acc>>(
        plan_.padded, [&](Span span) { return runner_up<Acc>(t_.s, span); });
    if (!(next.ties > 1)) spread_.second = exponential(next.best * plan_.to_spread * Acc(kLn2)) * spread_.largest;
  }
  out_[kWeight] = p_.teacher ? certainty<Acc>(p_, row_, spread_, plan_.log_classes) : Acc(1);
  out_[kEntropy] = spread_.entropy;
}

// The target as a distribution in scratch.
STEP void Worker<Acc, Each>::load_target() {
  const Acc keep = Acc(1 - p_.label_smoothing), floor = Acc(p_.label_smoothing / double(p_.classes));
  if (p_.target) {
    typed<Acc>(p_.target, row_, [&](auto* y) {
      every(plan_.classes, [&](Span span) { copy_target<Acc>(y, keep, floor, span, y_); });
    });
  } else {
    std::fill(y_, y_ + plan_.classes, floor);
    y_[p_.labels[row_]] += keep;
  }
  for (int64_t c = plan_.classes; c < plan_.padded; ++c) y_[c] = 0;
}

// log sum_c e^x(c), x shifted by the row's maximum. Where most of the sum is the maximum's 1, adding the rest to it class
// by class has rounded much of the rest away: it is summed again, alone.
STEP Acc Worker<Acc, Each>::log_sum(Student<Acc>& x) {
  if (!(x.sum_one < Acc(1.5))) return logs_[&x == &a_ ? kLogA : kLogB];
  const Acc others =
      reduce<Acc>(plan_.padded, [&](Span span) { return rest<Acc>(x.one, plan_.one == kFree ? kFree : 1, span); });
  x.sum_one = 1 + others;
  return logarithm1(others);
}

// -sum_c y(c) log p(c) = mass log sum_c e^x(c) - sum_c y(c) x(c), x shifted by the row's maximum.
STEP void Worker<Acc, Each>::cross_entropies() {
  const Acc lse_a = log_sum(a_), lse_b = plan_.two ? log_sum(b_) : 0;
  if (!plan_.soft) {
    const auto below = [&](const Matrix& m, Acc largest) {
      return typed<Acc>(m, row_, [&](auto* x) { return largest - Acc(widened(x[p_.labels[row_]])); });
    };
    out_[kTargetMass] = 1, out_[kCeA] = lse_a + below(p_.a, a_.largest);
    if (plan_.two) out_[kCeB] = lse_b + below(p_.b, b_.largest);
    return;
  }
  load_target();
  const auto sums = reduce<TargetSums<Acc>>(plan_.padded, [&](Span span) {
    return target_sums<Acc>(y_, a_.s, plan_.two ? b_.s : nullptr, span);
  });
  out_[kTargetMass] = sums.mass;
  out_[kCeA] = excluded(y_, a_) ? Acc(INFINITY) : sums.mass * lse_a - plan_.to_nats * sums.with_a;
  if (plan_.two) out_[kCeB] = excluded(y_, b_) ? Acc(INFINITY) : sums.mass * lse_b - plan_.to_nats * sums.with_b;
}

STEP Row<Acc> Worker<Acc, Each>::arrange() const {
  const bool ce = p_.has_ce();
  const Acc ce_scale = ce ? scale_ * value<Acc>(p_.ce, row_) : 0, mass = ce ? out_[kTargetMass] : 0;
  Row<Acc> r{};
  r.st = t_.s, r.et = t_.e, r.sa = a_.s, r.ea = a_.e, r.pa = a_.peer, r.oa = a_.one;
  r.sb = b_.s, r.eb = b_.e, r.pb = b_.peer, r.ob = b_.one;
  r.streaming = streaming_;
  r.y = plan_.soft ? y_ : nullptr, r.label = ce && !plan_.soft ? p_.labels[row_] : -1;
  r.over_t = 1 / t_.sum, r.over_a = 1 / a_.sum, r.over_b = 1 / b_.sum;
  r.over_pa = 1 / a_.sum_peer, r.over_pb = 1 / b_.sum_peer;
  const Acc log2_e = Acc(1 / kLn2);
  r.gap_ta = logs_[kGapTA] * log2_e, r.gap_tb = logs_[kGapTB] * log2_e, r.gap_ab = logs_[kGapAB] * log2_e;
  r.peer_ratio = plan_.to_peer;
  r.one_a = ce_scale * mass / a_.sum_one, r.one_b = ce_scale * mass / b_.sum_one, r.target = ce_scale;
  if (plan_.kd) r.kd = scale_ * value<Acc>(p_.kd, row_) * out_[kWeight] * Acc(p_.temperature);
  if (plan_.peer) r.peer = scale_ * value<Acc>(p_.peer, row_) * Acc(p_.peer_temperature);
  return r;
}

template <class Acc, class Each>
template <bool Grad, class Out>
Divergences<Acc> Worker<Acc, Each>::sweep_row(const Row<Acc>& r, Out* to_a, Out* to_b, Ahead next) {
  const auto run = [&](auto kd, auto two, auto peer, auto one) {
    return reduce<Divergences<Acc>>(plan_.padded, [&](Span span) {
      return divergences_and_gradients<Acc, kd.value, two.value, peer.value, one.value, Grad>(r, to_a, to_b, span,
                                                                                             next);
    });
  };
  const std::integral_constant<int, 0> none;
  const std::integral_constant<int, 1> same;
  const std::integral_constant<int, 2> other;
  const auto with = [&](auto one) {
    const std::true_type yes;
    const std::false_type no;
    if (!plan_.two) return plan_.kd ? run(yes, no, none, one) : run(no, no, none, one);
    if (!plan_.kd) return plan_.peer ? run(no, yes, same, one) : run(no, yes, none, one);
    return plan_.peer == 2 ? run(yes, yes, other, one) : plan_.peer ? run(yes, yes, same, one) : run(yes, yes, none, one);
  };
  if constexpr (Grad)
    if (plan_.one == kFree) return with(std::integral_constant<int, kFree>());
  return with(none);
}

// Divergences, and the gradients on the way: straight into the caller's memory where nothing else flows into them.
STEP Divergences<Acc> Worker<Acc, Each>::diverge(const Row<Acc>& r) {
  const Job& job = plan_.job;
  const Ahead next = ahead(p_.teacher ? p_.teacher : p_.a, row_ + 1);
  if (!job.gradients()) return mended(r, sweep_row<false, Acc>(r, nullptr, nullptr, next));
  const bool coupled = job.teacher || (plan_.peer && !p_.detach_peer);
  if constexpr (std::is_same_v<Acc, float>) {
    if (!coupled && !careful_ && plan_.classes >= Lanes<Acc>::kCount) {
      const auto direct = [&](auto zero) {
        using Out = decltype(zero);
        const auto place = [&](void* to) { return to ? static_cast<Out*>(to) + row_ * plan_.classes : nullptr; };
        return mended(r, sweep_row<true, Out>(r, place(job.a), place(job.b), next));
      };
      if (p_.a.dtype == ScalarType::Float) return direct(float());
      if (p_.a.dtype == ScalarType::BFloat16) return direct(Brain());
    }
  }
  Acc *to_t = job.teacher ? gradient_[0] : nullptr, *to_a = job.a ? gradient_[1] : nullptr,
      *to_b = job.b ? gradient_[2] : nullptr;
  const Divergences<Acc> kl = mended(r, sweep_row<true, Acc>(r, to_a, to_b, next));
  if (coupled)
    every(plan_.padded, [&](Span span) {
      target_gradients<Acc>(r, kl, plan_.kd, plan_.two, p_.detach_peer ? 0 : plan_.peer, to_t, to_a, to_b, span);
    });
  keep(to_t, job.teacher, p_.teacher), keep(to_a, job.a, p_.a), keep(to_b, job.b, p_.b);
  return kl;
}

STEP void Worker<Acc, Each>::keep(const Acc* from, void* to, const Matrix& like) {
  if (!to) return;
  typed<Acc>(Matrix{to, plan_.classes, like.dtype}, row_, [&](auto* place) {
    auto* out = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(place)>>*>(place);
    every(plan_.classes, [&](Span span) { store_row<Acc>(from, span, out); });
  });
}

// Divergences that are small again and precisely; those of classes that only one side excludes are infinite.
STEP Divergences<Acc> Worker<Acc, Each>::mended(const Row<Acc>& r, Divergences<Acc> kl) {
  const Acc near = Acc(1. / 128);
  const bool kd = plan_.kd, two = plan_.two, peer = plan_.peer;
  if ((kd && (kl.ta < near || (two && kl.tb < near))) || (peer && (kl.ab < near || kl.ba < near)))
    kl = reduce<Divergences<Acc>>(plan_.padded, [&](Span span) {
      return precise_divergences<Acc>(r, kd, two, plan_.peer, span);
    });
  const Acc infinity = Acc(INFINITY);
  if (kd && excluded(t_.e, a_)) kl.ta = infinity;
  if (kd && two && excluded(t_.e, b_)) kl.tb = infinity;
  if (peer && excluded(a_.peer, b_)) kl.ab = infinity;
  if (peer && excluded(b_.peer, a_)) kl.ba = infinity;
  return {not_negative(kl.ta), not_negative(kl.tb), not_negative(kl.ab), not_negative(kl.ba)};
}

STEP bool Worker<Acc, Each>::excluded(const Acc* mass, const Student<Acc>& x) const {
  return x.excludes && infinite<Acc>(mass, x.s, Lanes<Acc>::kExcluded / 2 * plan_.k, plan_.classes);
}

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
  const auto aligned = [&](void* to) { return reinterpret_cast<uintptr_t>(to) % uintptr_t(Lanes<Acc>::kCount * size) == 0; };
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

// Rows are short work and long waiting: for sums to be folded, logarithms, quotients. So several short ones go together.
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
  return size_t(together(plan.classes) * Worker<Acc, InTurn>::scratch_size(plan)) * sizeof(Acc);
}

inline size_t scratch_bytes(const Job& job) { return job.p.wide ? scratch_of<double>(job) : scratch_of<float>(job); }

inline void rows(const Job& job, int64_t begin, int64_t end, void* scratch) {
  job.p.wide ? run<double, InTurn>(job, begin, end, scratch) : run<float, InTurn>(job, begin, end, scratch);
}

inline void wide_row(const Job& job, int64_t row, void* scratch) {
  job.p.wide ? run<double, AtOnce>(job, row, row + 1, scratch) : run<float, AtOnce>(job, row, row + 1, scratch);
}

inline void exponential_of(const float* x, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += Lanes<float>::kCount) store<float>(to + i, exp2<float>(load<float>(x + i)));
}
