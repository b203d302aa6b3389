// A register of numbers: loads, stores, exponential, logarithm, powers and sums.
#pragma once

#include <cstdint>

#include "native.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

template <class Acc>
struct Lanes;

template <>
struct Lanes<float> {
  using Register = Single;
  using Bits = Word;
  static constexpr int kCount = UDSKD_VECTOR_BYTES / 4, kMantissa = 23;
  static constexpr float kLeast = -127;        // 2^x is 0 for this x and below
  static constexpr float kExcluded = -1e30f;   // replaces -inf, so that 0 * x is 0
  static constexpr float kShifter = 12583039;  // 1.5 * 2^23 + 127: added to x, its low bits are round(x) + 127
  // 2^f = 1 + f P(f) for |f| <= 1/2, to 4e-9; chosen with the rounding of each step in mind
  static constexpr float kPowers[] = {0x1.62e432p-1f, 0x1.ebfbeap-3f,  0x1.c6ae1p-5f,
                                      0x1.3b268p-7f,  0x1.5f9ba6p-10f, 0x1.46efaap-13f};
};

template <>
struct Lanes<double> {
  using Register = Double;
  using Bits = LongWord;
  static constexpr int kCount = UDSKD_VECTOR_BYTES / 8, kMantissa = 52;
  static constexpr double kLeast = -1023;
  static constexpr double kExcluded = -1e300;
  static constexpr double kShifter = 6755399441056767;  // 1.5 * 2^52 + 1023
  static constexpr double kPowers[] = {                 // 1.5e-18
                                       0.6931471805599452928,    0.24022650695910057401,    0.055504108664822570117,
                                       0.0096181291076353945575, 0.0013333558146230174751,  0.00015403530381594699778,
                                       1.5252733985260334092e-5, 1.3215495777735315399e-6,  1.0178004009438954945e-7,
                                       7.0517514737123452663e-9, 4.4630983346111152909e-10, 2.9871966125897226035e-11};
};

template <class Acc>
using Vector = typename Lanes<Acc>::Register;

template <class Acc>
INLINE Vector<Acc> all(Acc x) {
  return Vector<Acc>{} + x;
}

template <class Acc>
INLINE Vector<Acc> load(const Acc* from) {
  Vector<Acc> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <class Acc>
INLINE void store(Acc* to, Vector<Acc> x) {
  __builtin_memcpy(to, &x, sizeof x);
}

template <class Acc>
INLINE Vector<Acc> lane_indices() {
  Vector<Acc> index;
#pragma GCC unroll 16
  for (int l = 0; l < Lanes<Acc>::kCount; ++l) index[l] = Acc(l);
  return index;
}

// x in the first (the last) `count` lanes, zero in the others.
template <class Acc>
INLINE Vector<Acc> first(int64_t count, Vector<Acc> x) {
  return lane_indices<Acc>() < Acc(count) ? x : Vector<Acc>{};
}
template <class Acc>
INLINE Vector<Acc> last(int64_t count, Vector<Acc> x) {
  return lane_indices<Acc>() < Acc(Lanes<Acc>::kCount - count) ? Vector<Acc>{} : x;
}

// 2^x for x <= 1, to 0.9 units in the last place (1.1 without fused multiply-add). Results below 2^-126.5 (2^-1022.5 in
// double) are 0.
template <class Acc>
INLINE Vector<Acc> exp2(Vector<Acc> any) {
  using L = Lanes<Acc>;
  const Vector<Acc> x = at_least(all<Acc>(L::kLeast), any), shifted = x + L::kShifter, f = x - (shifted - L::kShifter);
  constexpr int kDegree = sizeof(L::kPowers) / sizeof(Acc);
  Vector<Acc> p = all<Acc>(L::kPowers[kDegree - 1]);
#pragma GCC unroll 16
  for (int k = kDegree - 2; k >= 0; --k) p = p * f + L::kPowers[k];
  p = p * f + Acc(1);
  const typename L::Bits two_to_n = (typename L::Bits)shifted << L::kMantissa;
  return p * (Vector<Acc>)two_to_n;
}

// log x of positive, normal x to 1 unit in the last place: x = m 2^n with 1/sqrt(2) <= m < sqrt(2); 0x3f3504f3 are the
// bits of 1/sqrt(2). NaN is kept.
INLINE Single log(Single x) {
  typedef int32_t Integer __attribute__((vector_size(UDSKD_VECTOR_BYTES)));
  constexpr float kPowers[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                               -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                               2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  const Word bits = (Word)x - 0x3f3504f3u;
  const Single r = (Single)((bits & 0x7fffffu) + 0x3f3504f3u) - 1.f;
  Single p = Single{} + kPowers[0];
#pragma GCC unroll 8
  for (int k = 1; k < 9; ++k) p = p * r + kPowers[k];
  const Single tail = r * r * (r * p - 0.5f);  // log m = r + tail
  const Single n = __builtin_convertvector((Integer)bits >> 23, Single);
  return x == x ? n * 0.693359375f + (r + (tail - n * 2.12194440e-4f)) : x;  // log 2 in two parts
}

// e^N
template <int N, class V>
INLINE V power(V e) {
  if constexpr (N < 2) {
    return e;
  } else {
    const V half = power<N / 2>(e);
    return N % 2 ? half * half * e : half * half;
  }
}

// Combines all values by halves, which is a fixed order.
template <class Acc, int N, class V, class F>
INLINE Acc reduce_halves(V x, F f) {
  if constexpr (N == 2) {
    return f(x[0], x[1]);
  } else {
    typedef Acc Part __attribute__((vector_size(N / 2 * sizeof(Acc))));
    Part half[2];
    __builtin_memcpy(half, &x, sizeof half);
    return reduce_halves<Acc, N / 2>(f(half[0], half[1]), f);
  }
}

template <class Acc, class F>
INLINE Acc reduce_lanes(Vector<Acc> x, F f) {
  return reduce_halves<Acc, Lanes<Acc>::kCount>(x, f);
}

template <class Acc>
INLINE Acc sum_of(Vector<Acc> x) {
  return reduce_lanes<Acc>(x, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
template <class Acc>
INLINE Acc max_of(Vector<Acc> x) {
  return reduce_lanes<Acc>(x, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}
template <class Acc>
INLINE Acc min_of(Vector<Acc> x) {
  return reduce_lanes<Acc>(x, [](auto a, auto b) __attribute__((always_inline)) { return a < b ? a : b; });
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
