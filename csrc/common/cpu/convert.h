// Reads logits of any dtype into vectors, and writes gradients of any dtype.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vector.h"

UDSKD_TARGET_BEGIN
namespace udskd::UDSKD_LEVEL {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

INLINE Single widen(Narrow x, BFloat16) { return (Single)(zero_extended(x) << 16); }
INLINE Single widen(Narrow x, Half) { return from_half(x); }

// Rounds numbers other than NaN to nearest even.
INLINE Narrow narrow_number(Single x, BFloat16) {
  const Word bits = (Word)x;
  return low_half((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
INLINE Narrow narrow_number(Single x, Half) { return to_half(x); }

// The same for NaN, too: rounding its payload could carry into the exponent.
INLINE Narrow narrow(Single x, BFloat16) {
  return narrow_number(x == x ? x : Single{} + __builtin_nanf(""), BFloat16{});
}
INLINE Narrow narrow(Single x, Half) { return to_half(x); }

template <class In>
INLINE auto widened(In x) {
  if constexpr (sizeof(In) == 2) {
    return widen(Narrow{x.bits}, In{})[0];
  } else {
    return x;
  }
}

// Reads kCount values of dtype In.
template <class Acc, class In>
INLINE Vector<Acc> read(const In* from) {
  if constexpr (std::is_same_v<In, Acc>) {
    return load<Acc>(from);
  } else if constexpr (sizeof(In) == 2 && std::is_same_v<Acc, float>) {
    Narrow raw;
    __builtin_memcpy(&raw, from, sizeof raw);
    return widen(raw, In{});
  } else {  // mixed with double, where speed does not matter
    Vector<Acc> x;
    for (int l = 0; l < Lanes<Acc>::kCount; ++l) {
      x[l] = Acc(widened(from[l]));
    }
    return x;
  }
}

// Writes kCount values as dtype Out, with non-temporal stores if `streaming`. Any value may be written for NaN.
template <class Acc, class Out>
INLINE void write_numbers(Out* to, Vector<Acc> x, bool streaming) {
  if constexpr (std::is_same_v<Acc, Out>) {
    if constexpr (std::is_same_v<Acc, float>)
      if (streaming) return stream(to, x);
    store<Acc>(to, x);
  } else {
    const Narrow raw = narrow_number(x, Out{});
    if (streaming) return stream(&to->bits, raw);
    __builtin_memcpy(to, &raw, sizeof raw);
  }
}

// Writes kCount values as dtype Out.
template <class Acc, class Out>
INLINE void write(Out* to, Vector<Acc> x) {
  if constexpr (std::is_same_v<Out, Acc>) {
    store<Acc>(to, x);
  } else if constexpr (sizeof(Out) == 2 && std::is_same_v<Acc, float>) {
    const Narrow raw = narrow(x, Out{});
    __builtin_memcpy(to, &raw, sizeof raw);
  } else {
    for (int l = 0; l < Lanes<Acc>::kCount; ++l) {
      if constexpr (sizeof(Out) == 2) {
        to[l].bits = narrow(Single{float(x[l])}, Out{})[0];
      } else {
        to[l] = Out(x[l]);
      }
    }
  }
}

}  // namespace
}  // namespace udskd::UDSKD_LEVEL
UDSKD_TARGET_END
