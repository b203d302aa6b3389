#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) void()
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) void()
#endif

namespace emu {
namespace {

constexpr std::align_val_t kSharedAlignment{128};
constexpr int kMaxYieldRounds = 10000;  // rounds in which threads do nothing but yield

void run_kernel() {
  self->block->launch->body();
  self->wait = Wait::kExited;
}

// Every bit set: NaN, or -1.
void poison(Block& block) {
  if (block.launch->shared) std::memset(block.shared, 0xff, block.launch->shared);
}

}  // namespace

Scheduler::Scheduler(const Launch& launch, unsigned order_seed)
    : launch_(launch),
      order_seed_(order_seed),
      stacks_(size_t(launch.threads()) * launch.group_blocks),
      blocks_(launch.group_blocks) {
  for (Block& block : blocks_) {
    block.launch = &launch_, block.group = &blocks_;
    block.threads.resize(launch.threads());
    block.warps.resize((launch.threads() + 31) / 32);
    // Exactly the size of the launch, so that AddressSanitizer reports accesses beyond it.
    block.shared = static_cast<unsigned char*>(::operator new(launch.shared, kSharedAlignment));
    poison(block);
  }
}

Scheduler::~Scheduler() {
  for (Block& block : blocks_) {
    ASAN_UNPOISON_MEMORY_REGION(block.shared, launch_.shared);
    ::operator delete(block.shared, kSharedAlignment);
  }
}

void Scheduler::run(uint64_t index) {
  running = &launch_;
  order_.start(order_seed_, index);
  order_.first(block_order_, blocks_.size());
  order_.first(warp_order_, blocks_[0].warps.size());
  order_.first(lane_order_, 32);
  for (unsigned rank = 0; rank < blocks_.size(); ++rank) set_up(blocks_[rank], rank, index);
  for (int idle = 0; std::any_of(blocks_.begin(), blocks_.end(), [](const Block& block) { return block.alive > 0; });) {
    idle = run_round() || release(blocks_) ? 0 : idle + 1;
    if (idle > kMaxYieldRounds) report_deadlock(blocks_);
    if (!resume_yielded(blocks_) && idle > 0) report_deadlock(blocks_);
  }
  running = nullptr;
}

void Scheduler::set_up(Block& block, unsigned rank, uint64_t index) {
  const unsigned wide = launch_.grid.x / launch_.group_blocks;
  block.rank = rank;
  block.index.x = unsigned(index % wide) * launch_.group_blocks + rank;
  block.index.y = unsigned(index / wide % launch_.grid.y);
  block.index.z = unsigned(index / wide / launch_.grid.y);
  block.alive = unsigned(block.threads.size()), block.started = false;
  block.at_barrier = block.at_cluster_barrier = block.yielding = block.mapped_by = 0;
  ASAN_UNPOISON_MEMORY_REGION(block.shared, launch_.shared);
  for (size_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    warp.threads = &block.threads[w * 32];
    warp.size = unsigned(std::min<size_t>(32, block.threads.size() - w * 32));
    warp.alive = ~0u >> (32 - warp.size), warp.waiting = 0;
  }
}

// Called just before the first thread of the block runs. What other blocks have written to its shared memory before is
// lost, as it may be on a GPU, where they have to wait until this block exists.
void Scheduler::start(Block& block) {
  block.started = true;
  poison(block);
  const dim3 shape = launch_.block;
  for (unsigned t = 0; t < block.threads.size(); ++t) {
    Thread& thread = block.threads[t];
    thread.index = {t % shape.x, t / shape.x % shape.y, t / (shape.x * shape.y)};
    thread.lane = t % 32, thread.warp = &block.warps[t / 32], thread.block = &block;
    thread.wait = Wait::kNothing;
    thread.fiber.start(stacks_[block.rank * block.threads.size() + t], &run_kernel);
  }
}

// Runs each block once, as far as possible. Returns whether any thread did more than yield, as do the next functions.
bool Scheduler::run_round() {
  bool moved = false;
  order_.next(block_order_);
  for (const unsigned rank : block_order_) moved |= run_ahead(blocks_[rank]);
  return moved;
}

bool Scheduler::run_ahead(Block& block) {
  if (!block.alive) return false;
  if (!block.started) start(block);
  bool moved = false;
  for (bool again = true; again;) {
    order_.next(warp_order_);
    for (const unsigned warp : warp_order_) moved |= run_warp(block.warps[warp]);
    const bool released = release(block);
    moved |= released;
    again = released && !order_.pause();
  }
  return moved;
}

// Runs the warp until all lanes wait for the rest of the block or have exited, so that a missing barrier has an effect.
bool Scheduler::run_warp(Warp& warp) {
  bool moved = false;
  do {
    order_.next(lane_order_);
    for (const unsigned lane : lane_order_) {
      if (lane < warp.size && warp.threads[lane].wait == Wait::kNothing) moved |= resume(warp.threads[lane]);
    }
  } while (release(warp));
  return moved;
}

bool Scheduler::resume(Thread& thread) {
  self = &thread;
  thread.fiber.resume();
  self = nullptr;
  if (thread.wait == Wait::kExited) {
    thread.warp->alive &= ~(1u << thread.lane);
    if (!--thread.block->alive) retire(*thread.block);
  }
  return thread.wait != Wait::kYield;
}

// The shared memory of the block becomes invalid. A block that has mapped it, and has not been at a barrier with this
// block since, may still use it.
void Scheduler::retire(Block& block) {
  for (const Block& other : blocks_) {
    if (other.alive && block.mapped_by >> other.rank & 1) {
      fatal(
          "block %u of a cluster exits while block %u may still use the shared memory that it mapped: no "
          "cluster_sync() "
          "between the two",
          block.rank, other.rank);
    }
  }
  poison(block);
  ASAN_POISON_MEMORY_REGION(block.shared, launch_.shared);
}

void* map_shared(const void* mine, size_t bytes, unsigned rank) {
  const Block& own = *self->block;
  const uintptr_t offset = uintptr_t(mine) - uintptr_t(own.shared);
  if (offset > own.launch->shared || bytes > own.launch->shared - offset) {
    fatal("cluster_map() of %p, which is not in the calling block's shared memory", mine);
  }
  if (rank >= own.launch->cluster) fatal("cluster_map() to block %u of a cluster of %u", rank, own.launch->cluster);
  if (own.launch->cluster == 1) return own.shared + offset;
  Block& other = (*own.group)[rank];
  if (!other.alive) fatal("cluster_map() to block %u of the cluster, which has exited", rank);
  if (rank != own.rank) other.mapped_by |= 1u << own.rank;
  return other.shared + offset;
}

}  // namespace emu
