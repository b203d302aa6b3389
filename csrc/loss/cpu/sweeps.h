// The sweeps that a row's statistics are made of, each over a span of one row's classes.
//
// A row has at least kCount classes: shorter ones were padded (copy_row). Where the first or the last vector of a
// span is not whole, it overlaps its neighbour, and only its own places are summed. Exponentials are base 2 (vector.h):
// a logit x becomes s = (x - maximum) k, k = log2(e) / temperature. Sums have kCount partial results, added in a fixed
// order.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../common/cpu/convert.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

// Of 16 bytes, which travel in registers. `head` classes come before the first vector that memory is aligned to; 0 if
// there are none, or if it does not matter.
struct Span {
  int64_t begin;
  int32_t count, head;
  INLINE int64_t end() const { return begin + count; }
};

// f(c, fresh) for every vector of the span; fresh(x) is x without the places that another vector has.
template <class Acc, int Unroll = 1, class F>
INLINE void sweep(Span span, F f) {
  constexpr int kCount = Lanes<Acc>::kCount;
  int64_t c = span.begin;
  const int64_t end = span.end(), head = span.head;
  const auto whole = [](Vector<Acc> x) __attribute__((always_inline)) { return x; };
  if (head) f(c, [=](Vector<Acc> x) __attribute__((always_inline)) { return first<Acc>(head, x); }), c += head;
  for (; Unroll > 1 && c + Unroll * kCount <= end; c += Unroll * kCount) {
#pragma GCC unroll 8
    for (int u = 0; u < Unroll; ++u) f(c + u * kCount, whole);
  }
  for (; c + kCount <= end; c += kCount) f(c, whole);
  if (c < end) f(end - kCount, [=](Vector<Acc> x) __attribute__((always_inline)) { return last<Acc>(end - c, x); });
}

// A row of fewer classes than a vector has; its first class is repeated beyond its end.
template <class Acc, class In>
INLINE Vector<Acc> read_short(const In* row, int64_t classes) {
  In few[Lanes<Acc>::kCount];
  for (int l = 0; l < Lanes<Acc>::kCount; ++l) few[l] = row[l < classes ? l : 0];
  return read<Acc>(few);
}

template <class Acc>
struct Largest {
  Acc value;
  INLINE void operator+=(const Largest& x) { value = x.value > value ? x.value : value; }
};

template <class Acc, class In>
Largest<Acc> largest(const In* row, Span span) {
  Vector<Acc> best = all<Acc>(-Acc(INFINITY));
  if (span.end() < Lanes<Acc>::kCount) {
    best = read_short<Acc>(row, span.end());
  } else {
    sweep<Acc, 4>(span,
                  [&](int64_t c, auto) __attribute__((always_inline)) { best = at_least(best, read<Acc>(row + c)); });
  }
  return {max_of<Acc>(best)};
}

// What the next sweep will read, asked for while this one computes.
struct Ahead {
  const char* row;
  int64_t size;  // bytes of a class
  INLINE void fetch(int64_t c) const { __builtin_prefetch(row + c * size); }
};

struct Found {
  double yes;
  INLINE void operator+=(Found x) { yes += x.yes; }
};

// A row in scratch as Acc, with kExcluded for -inf and in the places beyond a short row. Whether there was a -inf.
template <class Acc, class In>
Found copy_row(const In* row, Span span, Acc* to) {
  const Vector<Acc> excluded = all<Acc>(Lanes<Acc>::kExcluded);
  Vector<Acc> smallest = all<Acc>(Acc(INFINITY));
  const auto copy = [&](Vector<Acc> x, Acc* place) __attribute__((always_inline)) {
    smallest = at_most(smallest, x), store<Acc>(place, at_least(excluded, x));
  };
  if (span.end() < Lanes<Acc>::kCount) {
    copy(read_short<Acc>(row, span.end()), to);
    for (int64_t c = span.end(); c < Lanes<Acc>::kCount; ++c) to[c] = Lanes<Acc>::kExcluded;
  } else {
    sweep<Acc>(span, [&](int64_t c, auto) __attribute__((always_inline)) { copy(read<Acc>(row + c), to + c); });
  }
  return {min_of<Acc>(smallest) == -Acc(INFINITY) ? 1. : 0.};
}

// Gradients in scratch into a row of any dtype.
template <class Acc, class Out>
void store_row(const Acc* from, Span span, Out* to) {
  if (span.end() < Lanes<Acc>::kCount) {
    Out few[Lanes<Acc>::kCount];
    write<Acc>(few, load<Acc>(from));
    for (int64_t c = 0; c < span.end(); ++c) to[c] = few[c];
    return;
  }
  sweep<Acc>(span, [&](int64_t c, auto) __attribute__((always_inline)) { write<Acc>(to + c, load<Acc>(from + c)); });
}

template <class Acc>
struct Sums {
  Acc base, power, moment;  // of e, of e^N, of s e^N
  INLINE void operator+=(const Sums& x) { base += x.base, power += x.power, moment += x.moment; }
};

// The power that is computed again where it is needed: two multiplications are cheaper than memory.
constexpr int kFree = 4;

// s and e = 2^s of a row. For N > 0, e^N is summed, and kept where there are `powers`.
template <class Acc, int N, bool Moment, class In>
Sums<Acc> exponentials(const In* row, Acc shift, Acc k, Acc* s, Acc* e, Acc* powers, Span span, Ahead ahead) {
  Vector<Acc> base = all<Acc>(0), power_sum = base, moment = base;
  sweep<Acc, 2>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    ahead.fetch(c);
    const Vector<Acc> x = (read<Acc>(row + c) - shift) * k, exponential = exp2<Acc>(x);
    store<Acc>(s + c, x), store<Acc>(e + c, exponential);
    base += fresh(exponential);
    if constexpr (N > 0) {
      const Vector<Acc> raised = power<N>(exponential);
      power_sum += fresh(raised);
      if constexpr (Moment) moment += fresh(raised * x);
      if (N > 1 && powers) store<Acc>(powers + c, raised);
    }
  });
  return {sum_of<Acc>(base), sum_of<Acc>(power_sum), sum_of<Acc>(moment)};
}

// n: of power_for() (loss/terms.h).
template <class Acc, bool Moment, class In, class... Rest>
Sums<Acc> exponentials_and_powers(int n, const In* row, Rest... rest) {
  switch (n) {
    case 1:
      return exponentials<Acc, 1, Moment>(row, rest...);
    case 2:
      return exponentials<Acc, 2, Moment>(row, rest...);
    case 3:
      return exponentials<Acc, 3, Moment>(row, rest...);
    case 4:
      return exponentials<Acc, 4, Moment>(row, rest...);
    case 5:
      return exponentials<Acc, 5, Moment>(row, rest...);
    case 6:
      return exponentials<Acc, 6, Moment>(row, rest...);
    case 8:
      return exponentials<Acc, 8, Moment>(row, rest...);
    default:
      return exponentials<Acc, 0, Moment>(row, rest...);
  }
}

// The same row at another temperature: 2^(ratio s), kept unless its moment was asked for.
template <class Acc, bool Moment>
Sums<Acc> other_exponentials(const Acc* s, Acc ratio, Acc* to, Span span) {
  Vector<Acc> sum = all<Acc>(0), moment = sum;
  sweep<Acc, 2>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> x = load<Acc>(s + c) * ratio, exponential = exp2<Acc>(x);
    sum += fresh(exponential);
    if constexpr (Moment) moment += fresh(exponential * x);
    if constexpr (!Moment) store<Acc>(to + c, exponential);
  });
  return {0, sum_of<Acc>(sum), sum_of<Acc>(moment)};
}

// The sum of e^n without the maximum, which is 1.
template <class Acc>
Acc rest(const Acc* e, int n, Span span) {
  Vector<Acc> sum = all<Acc>(0);
  sweep<Acc>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> x = load<Acc>(e + c), raised = n == kFree ? power<kFree>(x) : x;
    sum += fresh(x < Acc(1) ? raised : Vector<Acc>{});
  });
  return sum_of<Acc>(sum);
}

template <class Acc>
struct RunnerUp {
  Acc ties, best;  // classes at the maximum, and the largest s below it
  INLINE void operator+=(const RunnerUp& x) { ties += x.ties, best = x.best > best ? x.best : best; }
};

template <class Acc>
RunnerUp<Acc> runner_up(const Acc* s, Span span) {
  const Vector<Acc> zero = all<Acc>(0), one = all<Acc>(1), none = all<Acc>(-Acc(INFINITY));
  Vector<Acc> ties = zero, best = none;
  sweep<Acc>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> x = load<Acc>(s + c);
    ties += fresh(x < zero ? zero : one), best = at_least(best, x < zero ? x : none);
  });
  return {sum_of<Acc>(ties), max_of<Acc>(best)};
}

template <class Acc>
struct TargetSums {
  Acc mass, with_a, with_b;  // of y, and of y s of each student
  INLINE void operator+=(const TargetSums& x) { mass += x.mass, with_a += x.with_a, with_b += x.with_b; }
};

// In two levels, eight vectors and then those, since the terms of a smoothed target are many and alike.
template <class Acc>
TargetSums<Acc> target_sums(const Acc* y, const Acc* a, const Acc* b, Span span) {
  const Vector<Acc> zero = all<Acc>(0);
  Vector<Acc> sums[3] = {zero, zero, zero}, recent[3] = {zero, zero, zero};
  int taken = 0;
  const auto settle = [&] {
    for (int k = 0; k < 3; ++k) sums[k] += recent[k], recent[k] = zero;
  };
  sweep<Acc>(span, [&](int64_t c, auto fresh) __attribute__((always_inline)) {
    const Vector<Acc> share = fresh(load<Acc>(y + c));
    recent[0] += share, recent[1] += share * load<Acc>(a + c);
    if (b) recent[2] += share * load<Acc>(b + c);
    if (++taken % 8 == 0) settle();
  });
  settle();
  return {sum_of<Acc>(sums[0]), sum_of<Acc>(sums[1]), sum_of<Acc>(sums[2])};
}

// The target of one row in scratch as a distribution, smoothed: y keep + floor.
template <class Acc, class In>
void copy_target(const In* y, Acc keep, Acc floor, Span span, Acc* to) {
  for (int64_t c = span.begin; c < span.end(); ++c) to[c] = Acc(widened(y[c])) * keep + floor;
}

// Whether p has mass on a class that q excludes, so that q diverges infinitely from p.
template <class Acc>
bool infinite(const Acc* p, const Acc* s, Acc excluded, int64_t end) {
  bool found = false;
  for (int64_t c = 0; c < end; ++c) found |= p[c] > 0 && s[c] <= excluded;
  return found;
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
