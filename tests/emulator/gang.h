// Runs blocks together, their threads taking turns on the calling OS thread: the blocks of a cluster, those of a group
// in a cooperative launch, or one block alone.
#pragma once

#include <cstdint>
#include <vector>

#include "fiber.h"
#include "order.h"
#include "thread.h"

namespace emu {

class Gang {
 public:
  Gang(const Launch& launch, unsigned order_seed);
  ~Gang();
  Gang(const Gang&) = delete;
  Gang& operator=(const Gang&) = delete;
  void run(uint64_t index);  // the index-th of the grid's gangs

 private:
  void place(Block& block, unsigned rank, uint64_t index);
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

// Lets those go on that have all arrived where they wait for each other; whether there were any.
bool release(Warp& warp);
bool release(Block& block);
bool release(std::vector<Block>& cluster);
// Lets those go on that gave way; whether there were any.
bool wake(std::vector<Block>& gang);

// None of the threads will ever go on: says why, and aborts.
[[noreturn]] void explain(const std::vector<Block>& gang);

}  // namespace emu
