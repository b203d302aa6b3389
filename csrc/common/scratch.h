// Scratch memory of the CPU kernels.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace udskd {

struct Free {
  void operator()(void* x) const { std::free(x); }
};
using Memory = std::unique_ptr<void, Free>;

inline Memory allocate_scratch(size_t bytes) {
  Memory memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  STD_TORCH_CHECK(memory, "no memory for ", bytes, " bytes of scratch");
  return memory;
}

// Calls f with scratch memory that is aligned to 64 bytes. Each thread keeps its memory from call to call, up to kKept
// bytes.
template <size_t kKept, class F>
void with_scratch(size_t bytes, F f) {
  if (bytes > kKept) return f(allocate_scratch(bytes).get());
  thread_local Memory kept;
  thread_local size_t size = 0;
  if (size < bytes) kept = allocate_scratch(bytes), size = bytes;
  f(kept.get());
}

}  // namespace udskd
