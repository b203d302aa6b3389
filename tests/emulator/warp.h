// Warp operations: shuffles, votes and reductions over the lanes that the mask names.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "thread.h"

namespace emu {

// The values that the lanes of a mask exchange.
template <class T>
class Exchange {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8));

 public:
  Exchange(unsigned mask, T mine, const char* call, const Location& location) : mask_(mask) {
    std::memcpy(&self->warp->posted[self->lane], &mine, sizeof mine);
    wait_for_warp(mask, call, location);
  }
  // A lane outside of the mask gives an undefined value on a GPU, and one with every bit set (NaN, or -1) here.
  T of(unsigned lane) const {
    uint64_t bits = ~uint64_t(0);
    if (mask_ >> lane & 1) bits = self->warp->delivered[lane];
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  template <class Combine>
  T all(Combine combine) const {
    T result = of(std::countr_zero(mask_));
    for (unsigned rest = mask_ & (mask_ - 1); rest; rest &= rest - 1) {
      result = combine(result, of(std::countr_zero(rest)));
    }
    return result;
  }

 private:
  unsigned mask_;
};

// The part of the warp, of `width` lanes, to which the calling lane belongs.
struct Part {
  unsigned first, last, own;
  explicit Part(int width) : first(self->lane & ~unsigned(width - 1)), last(first + width - 1), own(self->lane) {
    if (width < 1 || width > 32 || width & (width - 1)) fatal("a shuffle's width is %d", width);
  }
};

inline unsigned ballot(unsigned mask, int predicate, const char* call, const Location& location) {
  const Exchange<int> votes(mask, predicate, call, location);
  unsigned set = 0;
  for (unsigned lane = 0; lane < 32; ++lane) set |= unsigned((mask >> lane & 1) && votes.of(lane)) << lane;
  return set;
}

template <class T>
concept Word = std::is_same_v<T, int> || std::is_same_v<T, unsigned>;

}  // namespace emu

inline void __syncwarp(unsigned mask = 0xffffffffu, emu::Location location = emu::Location::current()) {
  emu::wait_for_warp(mask, "__syncwarp()", location);
}

template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = warpSize, emu::Location location = emu::Location::current()) {
  const emu::Part part(width);
  return emu::Exchange<T>(mask, x, "__shfl_sync()", location).of(part.first + (unsigned(source) & unsigned(width - 1)));
}

// A lane whose source is outside of its part gets its own value.
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = warpSize,
                 emu::Location location = emu::Location::current()) {
  const emu::Part part(width);
  const emu::Exchange<T> values(mask, x, "__shfl_up_sync()", location);
  return values.of(delta <= part.own - part.first ? part.own - delta : part.own);
}

template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = warpSize,
                   emu::Location location = emu::Location::current()) {
  const emu::Part part(width);
  const emu::Exchange<T> values(mask, x, "__shfl_down_sync()", location);
  return values.of(delta <= part.last - part.own ? part.own + delta : part.own);
}

// Unlike in the other shuffles, the source may be in an earlier part.
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = warpSize,
                  emu::Location location = emu::Location::current()) {
  const emu::Part part(width);
  const emu::Exchange<T> values(mask, x, "__shfl_xor_sync()", location);
  const unsigned source = part.own ^ unsigned(lanes);
  return values.of(source <= part.last ? source : part.own);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, emu::Location location = emu::Location::current()) {
  return emu::ballot(mask, predicate, "__ballot_sync()", location);
}
inline int __any_sync(unsigned mask, int predicate, emu::Location location = emu::Location::current()) {
  return emu::ballot(mask, predicate, "__any_sync()", location) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emu::Location location = emu::Location::current()) {
  return emu::ballot(mask, predicate, "__all_sync()", location) == mask;
}

template <emu::Word T>
T __reduce_add_sync(unsigned mask, T x, emu::Location location = emu::Location::current()) {
  const emu::Exchange<T> values(mask, x, "__reduce_add_sync()", location);
  return values.all([](T a, T b) { return T(unsigned(a) + unsigned(b)); });
}
template <emu::Word T>
T __reduce_max_sync(unsigned mask, T x, emu::Location location = emu::Location::current()) {
  return emu::Exchange<T>(mask, x, "__reduce_max_sync()", location).all([](T a, T b) { return std::max(a, b); });
}
template <emu::Word T>
T __reduce_min_sync(unsigned mask, T x, emu::Location location = emu::Location::current()) {
  return emu::Exchange<T>(mask, x, "__reduce_min_sync()", location).all([](T a, T b) { return std::min(a, b); });
}
