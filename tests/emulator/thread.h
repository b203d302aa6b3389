// A CUDA thread, its warp and its block while they run, and their barriers.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"
#include "types.h"

namespace emu {

using Location = std::source_location;

struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t shared = 0;          // bytes of dynamic shared memory
  unsigned cluster = 1;       // blocks of a cluster, along x
  unsigned group_blocks = 1;  // blocks that can wait for each other: those of a cluster, or of a cooperative group
  bool cooperative = false;
  std::function<void()> body;

  unsigned threads() const { return block.x * block.y * block.z; }
  uint64_t blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
};

enum class Wait : uint8_t { kNothing, kYield, kWarp, kBlock, kCluster, kExited };

struct Warp;
struct Block;

struct Thread {
  Fiber fiber;
  uint3 index{};
  unsigned lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Wait wait = Wait::kNothing;
  unsigned mask = 0;           // of the warp operation in which it waits
  int vote = 0;                // at __syncthreads_or() and the like
  const char* call = nullptr;  // the function in which it waits
  Location location;
};

// Lanes post their values when they arrive, and all values are delivered when the last lane has arrived. A lane that
// runs ahead can then post its next value while the others still read the delivered ones.
struct Warp {
  Thread* threads = nullptr;
  unsigned size = 0;
  unsigned alive = 0, waiting = 0;  // bit masks of lanes
  uint64_t posted[32] = {}, delivered[32] = {};
};

struct Block {
  const Launch* launch = nullptr;
  std::vector<Block>* group = nullptr;  // the blocks that run at the same time
  uint3 index{};
  unsigned rank = 0;  // in the group
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
  unsigned alive = 0, at_barrier = 0, at_cluster_barrier = 0, yielding = 0;
  int votes = 0;
  bool started = false;
  unsigned mapped_by = 0;  // ranks of the blocks that mapped its shared memory since the last barrier of the cluster
};

// The running thread; null on the host.
extern constinit thread_local Thread* self __attribute__((tls_model("initial-exec")));
// The launch that runs, for messages.
extern constinit thread_local const Launch* running;

// Prints the name of the kernel and a message, and aborts.
[[noreturn]] void fatal(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Return when all other threads have arrived. `call` and `location` identify the barrier.
void wait_for_warp(unsigned mask, const char* call, const Location& location);
void wait_for_block(int vote, const char* call, const Location& location);
void wait_for_cluster(const Location& location);

// Lets the other blocks of the group run, for a loop that waits for their writes.
void yield_to_others(Location location = Location::current());

inline unsigned cluster_rank() { return self->block->launch->cooperative ? 0 : self->block->rank; }
inline unsigned cluster_size() { return self->block->launch->cluster; }
inline void cluster_sync(Location location = Location::current()) { wait_for_cluster(location); }

inline const uint3& thread_index() { return self->index; }
inline const uint3& block_index() { return self->block->index; }
inline const dim3& block_shape() { return self->block->launch->block; }
inline const dim3& grid_shape() { return self->block->launch->grid; }

}  // namespace emu

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_shape())
#define gridDim (::emu::grid_shape())

inline void __syncthreads(emu::Location location = emu::Location::current()) {
  emu::wait_for_block(0, "__syncthreads()", location);
}
inline int __syncthreads_count(int predicate, emu::Location location = emu::Location::current()) {
  emu::wait_for_block(predicate, "__syncthreads_count()", location);
  return emu::self->block->votes;
}
inline int __syncthreads_or(int predicate, emu::Location location = emu::Location::current()) {
  emu::wait_for_block(predicate, "__syncthreads_or()", location);
  return emu::self->block->votes != 0;
}
inline int __syncthreads_and(int predicate, emu::Location location = emu::Location::current()) {
  emu::wait_for_block(predicate, "__syncthreads_and()", location);
  return emu::self->block->votes == int(emu::self->block->launch->threads());
}
inline void __nanosleep(unsigned, emu::Location location = emu::Location::current()) { emu::yield_to_others(location); }
