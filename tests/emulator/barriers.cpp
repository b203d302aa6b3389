// Barriers: how threads wait for each other, and when they continue.
#include <bit>
#include <cstring>

#include "scheduler.h"

namespace emu {
namespace {

void suspend(Wait wait, const char* call, const Location& location) {
  self->wait = wait, self->call = call, self->location = location;
  Fiber::suspend();
}

bool same_location(const Thread& a, const Thread& b) {
  return a.call == b.call && a.location.line() == b.location.line() && a.location.column() == b.location.column() &&
         (a.location.file_name() == b.location.file_name() ||
          !std::strcmp(a.location.file_name(), b.location.file_name()));
}

bool complete(const Warp& warp, const Thread& first) {
  const unsigned gone = first.mask & ~warp.alive;
  if (gone) {
    fatal("%s at %s:%u: the mask %08x names lane %d, which has exited or does not exist", first.call,
          first.location.file_name(), first.location.line(), first.mask, std::countr_zero(gone));
  }
  if (first.mask & ~warp.waiting) return false;
  for (unsigned rest = first.mask; rest; rest &= rest - 1) {
    const Thread& other = warp.threads[std::countr_zero(rest)];
    if (other.mask != first.mask || !same_location(first, other)) return false;
  }
  return true;
}

}  // namespace

void wait_for_warp(unsigned mask, const char* call, const Location& location) {
  if (!(mask >> self->lane & 1)) {
    fatal("%s at %s:%u: the mask %08x leaves out the caller, lane %u", call, location.file_name(), location.line(),
          mask, self->lane);
  }
  self->mask = mask;
  self->warp->waiting |= 1u << self->lane;
  suspend(Wait::kWarp, call, location);
}

void wait_for_block(int vote, const char* call, const Location& location) {
  self->vote = vote;
  ++self->block->at_barrier;
  suspend(Wait::kBlock, call, location);
}

void wait_for_cluster(const Location& location) {
  if (self->block->launch->cooperative) fatal("cluster_sync() in a cooperative launch, which has no clusters");
  ++self->block->at_cluster_barrier;
  suspend(Wait::kCluster, "cluster_sync()", location);
}

void yield_to_others(Location location) {
  ++self->block->yielding;
  suspend(Wait::kYield, "yield_to_others()", location);
}

bool release(Warp& warp) {
  const unsigned before = warp.waiting;
  for (unsigned left = warp.waiting; left;) {
    const int lane = std::countr_zero(left);
    const bool all_here = complete(warp, warp.threads[lane]);
    const unsigned group = all_here ? warp.threads[lane].mask : 1u << lane;
    left &= ~group;
    if (!all_here) continue;
    warp.waiting &= ~group;
    for (unsigned rest = group; rest; rest &= rest - 1) {
      const int released = std::countr_zero(rest);
      warp.delivered[released] = warp.posted[released];
      warp.threads[released].wait = Wait::kNothing;
    }
  }
  return warp.waiting != before;
}

bool release(Block& block) {
  if (block.at_barrier != block.threads.size()) return false;
  block.votes = 0;
  for (const Thread& thread : block.threads) {
    if (!same_location(thread, block.threads[0])) report_deadlock(*block.group);
    block.votes += thread.vote != 0;
  }
  for (Thread& thread : block.threads) thread.wait = Wait::kNothing;
  block.at_barrier = 0;
  return true;
}

bool release(std::vector<Block>& cluster) {
  for (const Block& block : cluster) {
    if (block.at_cluster_barrier != block.threads.size()) return false;
    for (const Thread& thread : block.threads) {
      if (!same_location(thread, cluster[0].threads[0])) report_deadlock(cluster);
    }
  }
  for (Block& block : cluster) {
    for (Thread& thread : block.threads) thread.wait = Wait::kNothing;
    block.at_cluster_barrier = block.mapped_by = 0;
  }
  return true;
}

bool resume_yielded(std::vector<Block>& group) {
  bool any = false;
  for (Block& block : group) {
    if (!block.yielding) continue;
    for (Thread& thread : block.threads) {
      if (thread.wait == Wait::kYield) thread.wait = Wait::kNothing;
    }
    block.yielding = 0, any = true;
  }
  return any;
}

}  // namespace emu
