// Kernel launches. Without the emulator, csrc/common/cuda/cuda.h defines the same macros as CUDA's launches.
#pragma once

#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "thread.h"

namespace emu {

// Runs or records the launch, or stores an error for cudaGetLastError().
void submit(const void* kernel, Launch launch);

// The name of a kernel with its template arguments, without its namespaces.
template <auto kKernel>
std::string name_of() {
  std::string_view name = __PRETTY_FUNCTION__;  // ... [with auto kKernel = namespaces::kernel<...>; ...]
  name.remove_prefix(name.find("kKernel = ") + 10);
  name = name.substr(0, name.find_first_of(";]"));
  const size_t scope = name.substr(0, name.find('<')).rfind("::");
  return std::string(scope == name.npos ? name : name.substr(scope + 2));
}

// Converts and copies the arguments, as CUDA does.
template <class... P>
void launch(Launch launch, void (*kernel)(P...), std::type_identity_t<P>... args) {
  static_assert((!std::is_reference_v<P> && ...), "a kernel's parameters are copied: no references");
  static_assert((sizeof(P) + ... + 0) <= 4096, "CUDA guarantees 4 KiB of parameters");
  launch.body = [kernel, copies = std::tuple<P...>(args...)] { std::apply(kernel, copies); };
  submit(reinterpret_cast<const void*>(kernel), std::move(launch));
}

inline Launch shaped(std::string kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t, unsigned cluster = 1) {
  return {std::move(kernel), grid, block, shared, cluster, cluster, false, {}};
}

inline Launch cooperative(unsigned group, Launch launch) {
  launch.group_blocks = group, launch.cooperative = true;
  return launch;
}

}  // namespace emu

// `kernel` is a constant expression, in parentheses if it contains commas. `stream` is ignored: there is one stream.
#define UDSKD_LAUNCH(kernel, grid, block, bytes, stream, ...)                          \
  ::emu::launch(::emu::shaped(::emu::name_of<(kernel)>(), grid, block, bytes, stream), \
                kernel __VA_OPT__(, ) __VA_ARGS__)

// The blocks of a cluster can map each other's shared memory.
#define UDSKD_LAUNCH_CLUSTER(kernel, cluster, grid, block, bytes, stream, ...)                  \
  ::emu::launch(::emu::shaped(::emu::name_of<(kernel)>(), grid, block, bytes, stream, cluster), \
                kernel __VA_OPT__(, ) __VA_ARGS__)

// The blocks of a group of `group` blocks can wait for each other through global memory: a loop that waits calls
// yield_to_others() or __nanosleep().
#define UDSKD_LAUNCH_COOPERATIVE(kernel, group, grid, block, bytes, stream, ...)                                  \
  ::emu::launch(::emu::cooperative(group, ::emu::shaped(::emu::name_of<(kernel)>(), grid, block, bytes, stream)), \
                kernel __VA_OPT__(, ) __VA_ARGS__)
