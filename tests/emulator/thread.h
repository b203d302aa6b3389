// A CUDA thread, its warp and its block while they run, and where they wait for each other.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "fiber.h"
#include "types.h"

namespace emu {

using Here = std::source_location;

struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t shared = 0;      // bytes of dynamic shared memory
  unsigned cluster = 1;   // blocks of a cluster, along x
  unsigned together = 1;  // blocks that can wait for each other: those of a cluster, or of a cooperative group
  bool cooperative = false;
  std::function<void()> body;

  unsigned threads() const { return block.x * block.y * block.z; }
  uint64_t blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
};

enum class Wait : uint8_t { kNothing, kTurn, kWarp, kBlock, kCluster, kExited };

struct Warp;
struct Block;

struct Thread {
  Fiber fiber;
  uint3 index{};
  unsigned lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Wait wait = Wait::kNothing;
  unsigned mask = 0;           // of the warp operation that it waits at
  int vote = 0;                // at __syncthreads_or() and the like
  const char* call = nullptr;  // what it waits in
  Here here;
};

// Values are posted by the lanes that arrive and delivered to all at once when the last has come: whoever then runs
// ahead posts anew without taking from the others what they have yet to read.
struct Warp {
  Thread* threads = nullptr;
  unsigned size = 0;
  unsigned alive = 0, waiting = 0;  // bit masks of lanes
  uint64_t posted[32] = {}, delivered[32] = {};
};

struct Block {
  const Launch* launch = nullptr;
  std::vector<Block>* gang = nullptr;  // those it runs together with
  uint3 index{};
  unsigned rank = 0;  // in the gang
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
  unsigned alive = 0, at_barrier = 0, at_cluster_barrier = 0, giving_way = 0;
  int votes = 0;
  bool started = false;
  unsigned mapped_by = 0;  // ranks of the blocks that mapped its shared memory since the last barrier of the cluster
};

// The running thread; null on the host.
extern constinit thread_local Thread* self __attribute__((tls_model("initial-exec")));
// What it, or the scheduler, is running; for messages.
extern constinit thread_local const Launch* running;

// Says what is wrong in which kernel, and aborts.
[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Returns when all others have arrived. `call` and `here` tell barriers apart.
void wait_for_warp(unsigned mask, const char* call, const Here& here);
void wait_for_block(int vote, const char* call, const Here& here);
void wait_for_cluster(const Here& here);

// Lets the others of the gang run before it goes on, which it needs to do where it waits for what they will write.
void yield_to_others(Here here = Here::current());

inline unsigned cluster_rank() { return self->block->launch->cooperative ? 0 : self->block->rank; }
inline unsigned cluster_size() { return self->block->launch->cluster; }
inline void cluster_sync(Here here = Here::current()) { wait_for_cluster(here); }

inline const uint3& thread_index() { return self->index; }
inline const uint3& block_index() { return self->block->index; }
inline const dim3& block_shape() { return self->block->launch->block; }
inline const dim3& grid_shape() { return self->block->launch->grid; }

}  // namespace emu

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_shape())
#define gridDim (::emu::grid_shape())

inline void __syncthreads(emu::Here here = emu::Here::current()) { emu::wait_for_block(0, "__syncthreads()", here); }
inline int __syncthreads_count(int predicate, emu::Here here = emu::Here::current()) {
  emu::wait_for_block(predicate, "__syncthreads_count()", here);
  return emu::self->block->votes;
}
inline int __syncthreads_or(int predicate, emu::Here here = emu::Here::current()) {
  emu::wait_for_block(predicate, "__syncthreads_or()", here);
  return emu::self->block->votes != 0;
}
inline int __syncthreads_and(int predicate, emu::Here here = emu::Here::current()) {
  emu::wait_for_block(predicate, "__syncthreads_and()", here);
  return emu::self->block->votes == int(emu::self->block->launch->threads());
}
inline void __nanosleep(unsigned, emu::Here here = emu::Here::current()) { emu::yield_to_others(here); }
