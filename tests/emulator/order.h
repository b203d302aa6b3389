// The order in which whatever is free to run does so: as numbered, the other way round, or at random.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace emu {

class Order {
 public:
  // 0 as numbered, 1 the other way round, else at random from that seed; each stream of random numbers is another.
  void start(unsigned seed, uint64_t stream) {
    seed_ = seed;
    random_.seed(seed * 2654435761u + unsigned(stream) * 40503u);
  }
  // 0, 1, ... count - 1 in that order.
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
  // Whether to let others go first, though one could go on.
  bool pause() { return seed_ > 1 && (random_() & 64); }

 private:
  unsigned seed_ = 0;
  std::minstd_rand random_;
};

}  // namespace emu
