// The order in which blocks, warps and lanes run: ascending, descending, or random.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace emu {

class Order {
 public:
  // Seed 0 is ascending, 1 descending, any other a random order that also depends on `stream`.
  void start(unsigned seed, uint64_t stream) {
    seed_ = seed;
    random_.seed(seed * 2654435761u + unsigned(stream) * 40503u);
  }
  // Sets `numbers` to 0, 1, ... count - 1 in that order.
  template <class T>
  void first(std::vector<T>& numbers, size_t count) {
    numbers.resize(count);
    std::iota(numbers.begin(), numbers.end(), T(0));
    if (seed_ == 1) std::reverse(numbers.begin(), numbers.end());
    next(numbers);
  }
  template <class T>
  void next(std::vector<T>& numbers) {
    if (seed_ > 1) std::shuffle(numbers.begin(), numbers.end(), random_);
  }
  // Whether to run others first, though the current one could continue.
  bool pause() { return seed_ > 1 && (random_() & 64); }

 private:
  unsigned seed_ = 0;
  std::minstd_rand random_;
};

}  // namespace emu
