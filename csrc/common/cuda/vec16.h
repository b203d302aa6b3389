// Vectorised loads and stores of rows of logits, in packets of 16 bytes.
//
// A row begins at any address. Packets are aligned in memory, so that the first and the last one may be partly outside
// of the row: positions outside are read as kOutside, whose exponential is 0, and are not written.
#pragma once

#include "cuda.h"

namespace udskd::cuda {

using BFloat16 = __nv_bfloat16;
using Half = __half;

// Far below every logit, and finite after the division by a temperature.
constexpr float kOutside = -1e34f;

// Elements of a packet in memory.
template <class E>
constexpr int kCount = 16 / sizeof(E);

// A packet in registers, with the dtype of memory. Half cannot represent kOutside and is widened when it is read.
template <class E>
struct Packet {
  uint4 raw[1];
};

template <>
struct Packet<Half> {
  uint4 raw[2];
};

__device__ inline double widened(double x) { return x; }
__device__ inline float widened(float x) { return x; }
__device__ inline float widened(BFloat16 x) { return __bfloat162float(x); }
__device__ inline float widened(Half x) { return __half2float(x); }

__device__ inline uint4 floats_as_bits(const float* x) {
  return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
}

__device__ inline void bits_as_floats(uint4 x, float* to) {
  to[0] = __uint_as_float(x.x), to[1] = __uint_as_float(x.y), to[2] = __uint_as_float(x.z),
  to[3] = __uint_as_float(x.w);
}

__device__ inline void widen_bfloat16_pair(unsigned two, float* to) {
  to[0] = __uint_as_float(two << 16), to[1] = __uint_as_float(two & 0xffff0000u);
}

__device__ inline void widen_half_pair(unsigned two, float* to) {
  const __half2_raw raw{static_cast<unsigned short>(two), static_cast<unsigned short>(two >> 16)};
  const float2 x = __half22float2(__half2(raw));
  to[0] = x.x, to[1] = x.y;
}

__device__ inline void widen(const Packet<float>& from, float* to) { bits_as_floats(from.raw[0], to); }
__device__ inline void widen(const Packet<Half>& from, float* to) {
  bits_as_floats(from.raw[0], to), bits_as_floats(from.raw[1], to + 4);
}
__device__ inline void widen(const Packet<BFloat16>& from, float* to) {
  const uint4 x = from.raw[0];
  widen_bfloat16_pair(x.x, to), widen_bfloat16_pair(x.y, to + 2), widen_bfloat16_pair(x.z, to + 4),
      widen_bfloat16_pair(x.w, to + 6);
}

__device__ inline void pack(uint4 x, Packet<float>& to) { to.raw[0] = x; }
__device__ inline void pack(uint4 x, Packet<BFloat16>& to) { to.raw[0] = x; }
__device__ inline void pack(uint4 x, Packet<Half>& to) {
  float wide[8];
  widen_half_pair(x.x, wide), widen_half_pair(x.y, wide + 2), widen_half_pair(x.z, wide + 4),
      widen_half_pair(x.w, wide + 6);
  to.raw[0] = floats_as_bits(wide), to.raw[1] = floats_as_bits(wide + 4);
}

__device__ inline void pack(const float* x, Packet<float>& to) { to.raw[0] = floats_as_bits(x); }
__device__ inline void pack(const float* x, Packet<Half>& to) {
  to.raw[0] = floats_as_bits(x), to.raw[1] = floats_as_bits(x + 4);
}
// Exact for values that were bfloat16. kOutside loses its lower 16 bits.
__device__ inline void pack(const float* x, Packet<BFloat16>& to) {
  const auto two = [&](int v) { return __float_as_uint(x[v]) >> 16 | (__float_as_uint(x[v + 1]) & 0xffff0000u); };
  to.raw[0] = {two(0), two(2), two(4), two(6)};
}

// kOnce: a streaming load, for data that is not read again.
template <bool kOnce, class E>
__device__ Packet<E> read(const E* aligned) {
  const uint4* const from = reinterpret_cast<const uint4*>(aligned);
  Packet<E> packet;
  pack(kOnce ? __ldcs(from) : *from, packet);
  return packet;
}

__device__ inline uint4 narrowed(const float* x, const float*) { return floats_as_bits(x); }
__device__ inline uint4 narrowed(const float* x, const BFloat16*) {
  const auto two = [&](int v) {
    const __nv_bfloat162_raw raw = __floats2bfloat162_rn(x[v], x[v + 1]);
    return unsigned(raw.x) | unsigned(raw.y) << 16;
  };
  return {two(0), two(2), two(4), two(6)};
}
__device__ inline uint4 narrowed(const float* x, const Half*) {
  const auto two = [&](int v) {
    const __half2_raw raw = __floats2half2_rn(x[v], x[v + 1]);
    return unsigned(raw.x) | unsigned(raw.y) << 16;
  };
  return {two(0), two(2), two(4), two(6)};
}
__device__ inline void narrow(float x, float* to) { *to = x; }
__device__ inline void narrow(float x, BFloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ inline void narrow(float x, Half* to) { *to = __float2half_rn(x); }

template <class E>
__device__ __noinline__ void write_singly(E* row, int c, int classes, uint4 packed) {
  const E* const x = reinterpret_cast<const E*>(&packed);
#pragma unroll
  for (int v = 0; v < kCount<E>; ++v)
    if (unsigned(c + v) < unsigned(classes)) row[c + v] = x[v];
}

// Writes the positions from c on that are in the row, from a packet that is aligned in memory.
template <class E>
__device__ void write(E* row, int c, int classes, const float* x) {
  const uint4 packed = narrowed(x, row);
  if (c >= 0 && c + kCount<E> <= classes) {
    __stcs(reinterpret_cast<uint4*>(row + c), packed);
  } else {
    write_singly(row, c, classes, packed);
  }
}

}  // namespace udskd::cuda
