// How threads wait for each other, and when they go on.
#include <bit>
#include <cstring>

#include "gang.h"

namespace emu {
namespace {

void park(Wait wait, const char* call, const Here& here) {
  self->wait = wait, self->call = call, self->here = here;
  Fiber::suspend();
}

bool same_place(const Thread& a, const Thread& b) {
  return a.call == b.call && a.here.line() == b.here.line() && a.here.column() == b.here.column() &&
         (a.here.file_name() == b.here.file_name() || !std::strcmp(a.here.file_name(), b.here.file_name()));
}

bool complete(const Warp& warp, const Thread& first) {
  const unsigned gone = first.mask & ~warp.alive;
  if (gone) {
    die("%s at %s:%u: the mask %08x names lane %d, which has exited or never was", first.call, first.here.file_name(),
        first.here.line(), first.mask, std::countr_zero(gone));
  }
  if (first.mask & ~warp.waiting) return false;
  for (unsigned rest = first.mask; rest; rest &= rest - 1) {
    const Thread& other = warp.threads[std::countr_zero(rest)];
    if (other.mask != first.mask || !same_place(first, other)) return false;
  }
  return true;
}

}  // namespace

void wait_for_warp(unsigned mask, const char* call, const Here& here) {
  if (!(mask >> self->lane & 1)) {
    die("%s at %s:%u: the mask %08x leaves out the caller, lane %u", call, here.file_name(), here.line(), mask,
        self->lane);
  }
  self->mask = mask;
  self->warp->waiting |= 1u << self->lane;
  park(Wait::kWarp, call, here);
}

void wait_for_block(int vote, const char* call, const Here& here) {
  self->vote = vote;
  ++self->block->at_barrier;
  park(Wait::kBlock, call, here);
}

void wait_for_cluster(const Here& here) {
  if (self->block->launch->cooperative) die("cluster_sync() in a cooperative launch, which has no clusters");
  ++self->block->at_cluster_barrier;
  park(Wait::kCluster, "cluster_sync()", here);
}

void yield_to_others(Here here) {
  ++self->block->giving_way;
  park(Wait::kTurn, "yield_to_others()", here);
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
    if (!same_place(thread, block.threads[0])) explain(*block.gang);
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
      if (!same_place(thread, cluster[0].threads[0])) explain(cluster);
    }
  }
  for (Block& block : cluster) {
    for (Thread& thread : block.threads) thread.wait = Wait::kNothing;
    block.at_cluster_barrier = block.mapped_by = 0;
  }
  return true;
}

bool wake(std::vector<Block>& gang) {
  bool woken = false;
  for (Block& block : gang) {
    if (!block.giving_way) continue;
    for (Thread& thread : block.threads) {
      if (thread.wait == Wait::kTurn) thread.wait = Wait::kNothing;
    }
    block.giving_way = 0, woken = true;
  }
  return woken;
}

}  // namespace emu
