// Mathematical device functions. Where the hardware is less accurate than the C library, so is the emulator, so that
// kernels cannot rely on a better result.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero((unsigned long long)x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

template <std::integral T>
T min(T x, T y) {
  return y < x ? y : x;
}
template <std::integral T>
T max(T x, T y) {
  return x < y ? y : x;
}
inline float min(float x, float y) { return std::fmin(x, y); }
inline float max(float x, float y) { return std::fmax(x, y); }
inline double min(double x, double y) { return std::fmin(x, y); }
inline double max(double x, double y) { return std::fmax(x, y); }

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
// Divisors beyond 2^126 have a reciprocal that the hardware flushes to zero.
inline float __fdividef(float x, float y) { return std::isfinite(y) && std::fabs(y) > 0x1p126f ? x * 0 : x / y; }

namespace emu {

// A hash of the input, between -1 and 1.
inline double noise(uint32_t bits) {
  bits = (bits ^ bits >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  return int32_t(bits ^ bits >> 16) * 0x1p-31;
}

}  // namespace emu

// 2^x as by ex2.approx.ftz.f32. Subnormal numbers are zero and integers are exact. Of the other results, three quarters
// are rounded correctly, and none is more than 1.41 units in the last place off, as Oberman and Siu (A High-Performance
// Area-Efficient Multifunction Interpolator, ARITH 2005) state for NVIDIA's hardware. Results stay in the interval
// between the powers of two that enclose them.
inline float emu_ex2(float x) {
  if (std::isnan(x)) return std::numeric_limits<float>::quiet_NaN();
  if (x >= 128) return std::numeric_limits<float>::infinity();
  if (x < -126) return 0;
  if (std::fabs(x) < std::numeric_limits<float>::min()) return 1;
  const int below = int(std::floor(x));
  const double power = std::ldexp(1., below), unit = std::ldexp(1., below - 23);
  if (float(below) == x) return float(power);
  const double noise = emu::noise(std::bit_cast<uint32_t>(x));
  const double off = std::exp2(double(x)) + 0.91 * unit * noise * noise * noise;
  return float(std::clamp(off, power, 2 * power));
}
