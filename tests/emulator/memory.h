// Memory of kernels: shared memory, also of the cluster's other blocks, loads, stores, fences and atomics.
#pragma once

#include <atomic>
#include <type_traits>

#include "thread.h"

namespace emu {

void* map_shared(const void* mine, size_t bytes, unsigned rank);

// The address in the shared memory of the cluster's block `rank` that corresponds to `mine` in that of this block.
template <class T>
T* cluster_map(T* mine, unsigned rank) {
  return static_cast<T*>(map_shared(mine, sizeof(T), rank));
}

// A GPU faults where x86 would silently load from two cache lines.
template <class T>
T* aligned(T* p, const char* call) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T))
    fatal("%s of %zu bytes at the misaligned %p", call, sizeof(T), (void*)p);
  return p;
}

template <class T>
std::atomic_ref<T> atomic(T* p, const char* call) {
  return std::atomic_ref<T>(*aligned(p, call));
}

// Replaces *p by next(*p), and returns the old value.
template <class T, class Next>
T update(T* p, const char* call, Next next) {
  const std::atomic_ref<T> x = atomic(p, call);
  T was = x.load();
  while (!x.compare_exchange_weak(was, next(was))) {
  }
  return was;
}

template <class T>
using Same = std::type_identity_t<T>;  // not deduced, so that atomicAdd(float*, 1) converts as with CUDA's overloads

}  // namespace emu

#define UDSKD_SHARED(name) unsigned char* name = ::emu::self->block->shared

inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// clang-format off
template <class T> T __ldg(const T* p) { return *emu::aligned(p, "__ldg()"); }
template <class T> T __ldca(const T* p) { return *emu::aligned(p, "__ldca()"); }
template <class T> T __ldcg(const T* p) { return *emu::aligned(p, "__ldcg()"); }
template <class T> T __ldcs(const T* p) { return *emu::aligned(p, "__ldcs()"); }
template <class T> T __ldcv(const T* p) { return *emu::aligned(p, "__ldcv()"); }
template <class T> T __ldlu(const T* p) { return *emu::aligned(p, "__ldlu()"); }
template <class T> void __stcg(T* p, emu::Same<T> x) { *emu::aligned(p, "__stcg()") = x; }
template <class T> void __stcs(T* p, emu::Same<T> x) { *emu::aligned(p, "__stcs()") = x; }
template <class T> void __stwb(T* p, emu::Same<T> x) { *emu::aligned(p, "__stwb()") = x; }
template <class T> void __stwt(T* p, emu::Same<T> x) { *emu::aligned(p, "__stwt()") = x; }
// clang-format on

template <class T>
T atomicAdd(T* p, emu::Same<T> x) {
  return emu::atomic(p, "atomicAdd()").fetch_add(x);
}
template <class T>
T atomicSub(T* p, emu::Same<T> x) {
  return emu::atomic(p, "atomicSub()").fetch_sub(x);
}
template <class T>
T atomicExch(T* p, emu::Same<T> x) {
  return emu::atomic(p, "atomicExch()").exchange(x);
}
template <class T>
T atomicCAS(T* p, emu::Same<T> expected, emu::Same<T> x) {
  emu::atomic(p, "atomicCAS()").compare_exchange_strong(expected, x);
  return expected;
}
template <class T>
T atomicMax(T* p, emu::Same<T> x) {
  static_assert(std::is_integral_v<T>);
  return emu::update(p, "atomicMax()", [x](T was) { return was < x ? x : was; });
}
template <class T>
T atomicMin(T* p, emu::Same<T> x) {
  static_assert(std::is_integral_v<T>);
  return emu::update(p, "atomicMin()", [x](T was) { return x < was ? x : was; });
}
template <class T>
T atomicAnd(T* p, emu::Same<T> x) {
  return emu::atomic(p, "atomicAnd()").fetch_and(x);
}
template <class T>
T atomicOr(T* p, emu::Same<T> x) {
  return emu::atomic(p, "atomicOr()").fetch_or(x);
}
// Counts up to `last`, then from 0 again.
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return emu::update(p, "atomicInc()", [last](unsigned was) { return was >= last ? 0 : was + 1; });
}
