// The mathematics of one row for a team of threads.
//
// No include guard, and nothing included: the CUDA backend includes this file inside its namespace, after
// row_math.h and after defining HD, exponential() and logarithm().
//
// A Team is whoever works on the row, such as the threads of a block. It offers
//   team.max(n, f)              the largest f(c) over the classes c
//   team.sum(n, f, sums)        sums[k] = the sum over the classes of what f(c, terms) leaves in terms[k]
//   team.blocks(n, f)           calls f(c, width) so that each class is covered once; width is an integral constant
// Logits come as functors of the class, already shifted by the row's maximum, so that exponentials never overflow.

template <class Acc, class Load>
struct Shifted {
  Load load;
  Acc shift;
  HD Acc operator()(int64_t c) const { return load(c) - shift; }
};

template <class Acc, class Load>
HD inline Shifted<Acc, Load> shifted(Load load, Acc shift) {
  return {load, shift};
}

// e * x, where a class without mass (x possibly infinite) contributes nothing.
template <class Acc>
HD inline Acc mass_times(Acc e, Acc x) {
  return e == 0 ? Acc(0) : e * x;
}

template <class Acc>
struct Divergence {
  Acc sum_p, sum_q, forward, backward;  // sums of exponentials; KL(p || q), KL(q || p)
};

// p log(p / q) + q - p for d = log(p / q). Summed over all classes that is KL(p || q), since p and q both add up to 1;
// but no term is negative, so nothing cancels, and an error of a normaliser drops out to first order. Small d: p (e^-d
// - 1 + d) by its series, in which q - p is not formed.
template <class Acc>
HD inline Acc excess(Acc p, Acc q, Acc d) {
  const Acc series =
      d * d * (Acc(1. / 2) - d * (Acc(1. / 6) - d * (Acc(1. / 24) - d * (Acc(1. / 120) - d * Acc(1. / 720)))));
  constexpr Acc kNear = Acc(sizeof(Acc) == 4 ? 0.0625 : 0.0009765625);  // beyond it, the series' remainder is seen
  const bool near = d < kNear && d > -kNear;
  return near ? p * series : mass_times(p, d) + (q - p);
}

template <class Acc, class Team, class P, class Q>
HD __noinline__ Divergence<Acc> divergence(const Team& team, int64_t n, P p, Q q, Acc inverse, bool both) {
  Acc sums[2], kl[2];
  auto exponentials = [=](int64_t c, Acc* terms) {
    terms[0] = exponential(p(c) * inverse), terms[1] = exponential(q(c) * inverse);
  };
  team.sum(n, exponentials, sums);
  const Acc over_p = 1 / sums[0], over_q = 1 / sums[1], gap = logarithm(sums[1] * over_p);
  auto excesses = [=](int64_t c, Acc* terms) {
    const Acc sp = p(c) * inverse, sq = q(c) * inverse, d = (sp - sq) + gap;
    const Acc mass_p = exponential(sp) * over_p, mass_q = exponential(sq) * over_q;
    terms[0] = excess(mass_p, mass_q, d), terms[1] = both ? excess(mass_q, mass_p, -d) : Acc(0);
  };
  team.sum(n, excesses, kl);
  return {sums[0], sums[1], not_negative(kl[0]), not_negative(kl[1])};
}

// KL(p || q) as sum p log(p / q), for what is to be subtracted from log(p / q): what is wrong with the normalisers is
// then wrong in both and cancels. exact: the divergence, which may be infinite.
template <class Acc, class Team, class P, class Q>
HD inline Acc plain_divergence(const Team& team, int64_t n, P p, Q q, Acc inverse, Acc sum_p, Acc sum_q, Acc exact) {
  if (exact - exact != 0) return exact;
  const Acc gap = logarithm(sum_q / sum_p);
  Acc sum[1];
  auto terms_of = [=](int64_t c, Acc* terms) {
    const Acc s = p(c) * inverse;
    terms[0] = mass_times(exponential(s) / sum_p, (s - q(c) * inverse) + gap);
  };
  team.sum(n, terms_of, sum);
  return sum[0];
}

template <class Acc, class Team, class X>
HD __noinline__ Spread<Acc> spread(const Team& team, int64_t n, X x, Acc inverse, bool with_second) {
  Acc sum[3];
  auto terms_of = [=](int64_t c, Acc* terms) {
    const Acc s = x(c) * inverse, e = exponential(s);
    terms[0] = e, terms[1] = mass_times(e, s), terms[2] = s == 0 ? Acc(1) : Acc(0);
  };
  team.sum(n, terms_of, sum);
  Spread<Acc> out{logarithm(sum[0]) - sum[1] / sum[0], 1 / sum[0], 1 / sum[0]};
  if (with_second && !(sum[2] > 1)) {  // not a tie: the runner-up is the largest below the maximum
    const Acc runner_up = team.max(n, [=](int64_t c) { return x(c) < 0 ? x(c) * inverse : -Acc(INFINITY); });
    out.second = exponential(runner_up) / sum[0];
  }
  return out;
}

// A label or a distribution, smoothed: y'(c) = y(c) (1 - smoothing) + smoothing / n.
template <class Acc, class Load>
struct Target {
  Load load;        // the distribution, or unused
  int64_t label;    // -1 when there is a distribution; n stands for a label that is no class, and makes the row NaN
  Acc keep, floor;  // 1 - smoothing, smoothing / n
  HD Acc operator()(int64_t c) const { return (label < 0 ? load(c) * keep : label == c ? keep : Acc(0)) + floor; }
};

template <class Acc>
struct CrossEntropy {
  Acc sum, value, mass;  // of exponentials; the loss; of the target
};

// - sum_c y'(c) log p(c) = mass * log sum_c e^x(c) - sum_c y'(c) x(c)
template <class Acc, class Team, class X, class Y>
HD __noinline__ CrossEntropy<Acc> cross_entropy(const Team& team, int64_t n, X x, Y y) {
  Acc norm[2], sum[2];  // of the largest classes, and of the rest, which is small where the row is confident
  auto halves = [=](int64_t c, Acc* terms) {
    const Acc s = x(c), e = exponential(s);
    terms[0] = s < 0 ? Acc(0) : e, terms[1] = s < 0 ? e : Acc(0);
  };
  team.sum(n, halves, norm);
  const Acc all = norm[0] + norm[1], lse = norm[0] == 1 ? logarithm1(norm[1]) : logarithm(all);
  if (y.label >= n) return {all, Acc(NAN), Acc(NAN)};
  if (y.label >= 0 && y.floor == 0) return {all, lse - x(y.label), Acc(1)};
  auto terms_of = [=](int64_t c, Acc* terms) {
    const Acc mass = y(c);
    terms[0] = mass, terms[1] = mass == 0 ? Acc(0) : mass * x(c);
  };
  team.sum(n, terms_of, sum);
  const Acc mass = y.label >= 0 ? Acc(1) : sum[0];
  return {all, mass * lse - sum[1], mass};
}

// How the gradient of one student's logits is made up.
template <class Acc>
struct StudentScales {
  Acc ce, kd, peer;                          // of the row's terms: coefficient * weight * T * share * grad_output
  Acc over_one, over, over_peer;             // 1 / sum of exponentials of this student, at temperature 1, T and tau
  Acc over_teacher, over_other;              // the teacher's at T, the other student's at tau
  Acc mass;                                  // of the target
  Acc gap, kl_as_target;                     // log(sum of the other / sum of this) at tau, and KL(this || other)
  bool has_ce, has_kd, has_peer, as_target;  // as_target: the peer's term flows into its target as well
};

// d loss / d logit of a student, for Width classes from c on:
//   ce (mass p - y) + kd T (q - q_teacher) + peer tau (r - r_other) [+ peer tau r (log r - log r_other - KL(this ||
//   other))]
template <class Acc, class X, class T, class O, class Y, class Width>
HD inline void student_gradient(Acc* out, int64_t c, Width, const StudentScales<Acc>& s, X x, T teacher, O other, Y y,
                                Acc inverse, Acc inverse_peer) {
  constexpr int W = Width::value;
  for (int l = 0; l < W; ++l) out[l] = 0;
  if (s.has_ce && y.label < 0) {
    for (int l = 0; l < W; ++l) out[l] += s.ce * (s.mass * exponential(x(c + l)) * s.over_one - y(c + l));
  } else if (s.has_ce) {  // the label's class is mended outside the loop, which stays free of branches
    for (int l = 0; l < W; ++l) out[l] += s.ce * (s.mass * exponential(x(c + l)) * s.over_one - y.floor);
    if (y.label >= c && y.label < c + W)
      out[y.label - c] = s.ce * (s.mass * exponential(x(y.label)) * s.over_one - y(y.label));
  }
  if (s.has_kd) {
    for (int l = 0; l < W; ++l)
      out[l] +=
          s.kd * (exponential(x(c + l) * inverse) * s.over - exponential(teacher(c + l) * inverse) * s.over_teacher);
  }
  if (s.has_peer) {
    for (int l = 0; l < W; ++l)
      out[l] += s.peer * (exponential(x(c + l) * inverse_peer) * s.over_peer -
                          exponential(other(c + l) * inverse_peer) * s.over_other);
  }
  if (s.has_peer && s.as_target) {
    for (int l = 0; l < W; ++l) {
      const Acc r = x(c + l) * inverse_peer, d = (r - other(c + l) * inverse_peer) + s.gap;
      out[l] += s.peer * mass_times(exponential(r) * s.over_peer, d - s.kl_as_target);
    }
  }
}

// d loss / d logit of the teacher from one student's term: kd T q_t (log(q_t / q_student) - KL(teacher || student))
template <class Acc, class T, class X>
HD inline Acc teacher_gradient(int64_t c, T teacher, X student, Acc inverse, Acc sum_teacher, Acc sum_student, Acc kl,
                               Acc scale) {
  const Acc t = teacher(c) * inverse, d = (t - student(c) * inverse) + logarithm(sum_student / sum_teacher);
  return scale * mass_times(exponential(t) / sum_teacher, d - kl);
}

template <class Acc, class Load>
HD inline Target<Acc, Load> target_of(const Problem& p, int64_t row, Load load) {
  int64_t label = p.labels ? p.labels[row] : -1;
  if (p.labels && (label < 0 || label >= p.classes)) label = p.classes;
  return {load, label, Acc(1 - p.label_smoothing), Acc(p.label_smoothing / double(p.classes))};
}

// Fills one row of the saved statistics, except the share and the normalisation of the weight, which need all rows.
template <class Acc, class Team, class T, class A, class B, class Y>
HD inline void row_statistics(const Team& team, const Problem& p, int64_t row, T teacher, A a, B b, Y y, Acc* out) {
  const int64_t n = p.classes;
  out[kWeight] = 1;
  if (p.teacher) {
    const Spread<Acc> s = spread<Acc>(team, n, teacher, Acc(1 / p.uncertainty_temperature), p.uncertainty == kMargin);
    out[kEntropy] = s.entropy, out[kWeight] = certainty<Acc>(p, row, s, logarithm(Acc(n)));
  }
  if (p.has_kd()) {
    const Divergence<Acc> d = divergence<Acc>(team, n, teacher, a, Acc(1 / p.temperature), false);
    out[kSumT] = d.sum_p, out[kSumA] = d.sum_q, out[kKlTA] = d.forward;
  }
  if (p.has_kd() && p.b) {
    const Divergence<Acc> d = divergence<Acc>(team, n, teacher, b, Acc(1 / p.temperature), false);
    out[kSumB] = d.sum_q, out[kKlTB] = d.forward;
  }
  if (p.has_peer()) {
    const Divergence<Acc> d = divergence<Acc>(team, n, a, b, Acc(1 / p.peer_temperature), true);
    out[kSumPeerA] = d.sum_p, out[kSumPeerB] = d.sum_q, out[kKlAB] = d.forward, out[kKlBA] = d.backward;
  }
  if (p.has_ce()) {
    const CrossEntropy<Acc> ce = cross_entropy<Acc>(team, n, a, y);
    out[kSumOneA] = ce.sum, out[kCeA] = ce.value, out[kTargetMass] = ce.mass;
  }
  if (p.has_ce() && p.b) {
    const CrossEntropy<Acc> ce = cross_entropy<Acc>(team, n, b, y);
    out[kSumOneB] = ce.sum, out[kCeB] = ce.value;
  }
}

// The scales of student a's gradient; swap the columns for b. `share` is the row's share of the loss times grad_output.
template <class Acc>
HD inline StudentScales<Acc> student_scales(const Problem& p, int64_t row, const Acc* s, Acc share, bool is_b) {
  StudentScales<Acc> out;
  out.has_ce = p.has_ce(), out.has_kd = p.has_kd(), out.has_peer = p.has_peer(), out.as_target = !p.detach_peer;
  out.ce = share * value<Acc>(p.ce, row);
  out.kd = share * value<Acc>(p.kd, row) * s[kWeight] * Acc(p.temperature);
  out.peer = share * value<Acc>(p.peer, row) * Acc(p.peer_temperature);
  out.over_one = 1 / s[is_b ? kSumOneB : kSumOneA], out.over = 1 / s[is_b ? kSumB : kSumA],
  out.over_teacher = 1 / s[kSumT];
  const Acc sum_peer = s[is_b ? kSumPeerB : kSumPeerA], sum_other = s[is_b ? kSumPeerA : kSumPeerB];
  out.over_peer = 1 / sum_peer, out.over_other = 1 / sum_other, out.gap = logarithm(sum_other / sum_peer);
  out.mass = s[kTargetMass], out.kl_as_target = s[is_b ? kKlBA : kKlAB];
  return out;
}
