// Runs the blocks of a group at the same time: the blocks of a cluster, of a group in a cooperative launch, or one
// block alone. Their threads run in turn on the calling OS thread.
#pragma once

#include <cstdint>
#include <vector>

#include "fiber.h"
#include "order.h"
#include "thread.h"

namespace emu {

class Scheduler {
 public:
  Scheduler(const Launch& launch, unsigned order_seed);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;
  void run(uint64_t index);  // the group of this index in the grid

 private:
  void set_up(Block& block, unsigned rank, uint64_t index);
  void start(Block& block);
  bool run_round();
  bool run_ahead(Block& block);
  bool run_warp(Warp& warp);
  bool resume(Thread& thread);
  void retire(Block& block);

  const Launch& launch_;
  const unsigned order_seed_;
  Stacks stacks_;
  std::vector<Block> blocks_;
  std::vector<uint16_t> block_order_, warp_order_, lane_order_;
  Order order_;
};

// Releases the threads that wait at a barrier at which all of its threads have arrived. Returns whether there are any.
bool release(Warp& warp);
bool release(Block& block);
bool release(std::vector<Block>& cluster);
// Releases the threads that have yielded. Returns whether there are any.
bool resume_yielded(std::vector<Block>& group);

// None of the threads can continue: reports the reason and aborts.
[[noreturn]] void report_deadlock(const std::vector<Block>& group);

}  // namespace emu
