// Which CUDA kernel computes the rows of a problem: one small table in plain C++, which can be tested without a GPU.
#pragma once

#include <cstdint>

#include "../common/cuda/limits.h"

namespace udskd::cuda {

constexpr int64_t kMostClasses = 1 << 30;  // the kernels count classes in 32 bits

enum Regime : int { kLanes8, kWarp1, kWarp8, kBlock128, kBlock256, kInShared, kInCluster, kSplit, kRegimes };
enum Format : int { kFloat, kBFloat16, kHalf, kFormats };  // if all networks share it; else the generic kernel runs

constexpr int kLanes[kRegimes] = {8, 32, 32, 128, 256, 256, 256, 256};  // threads that share a row, in one block
// Packets of 16 bytes that a thread holds in registers. The last three regimes hold rows in shared or global memory.
constexpr int kInRegisters[kRegimes][kFormats] = {{4, 2, 2}, {1, 1, 1}, {8, 4, 4}, {2, 1, 1}, {3, 1, 2}};
constexpr int kClassesOf[kFormats] = {4, 8, 8};  // classes of a packet
constexpr int kWordsOf[kFormats] = {1, 1, 2};    // 16-byte words that a packet occupies in shared memory

// Which kernels exist. "usual": specialized for labels, a teacher and two students at one temperature. To limit the
// size of the library, float16 and other losses have fewer kernels.
constexpr bool compiled(Regime regime, Format format, bool usual) {
  return usual ? regime != kSplit && format != kHalf : regime == kWarp1 || regime == kBlock128 || regime == kSplit;
}

struct Plan {
  Regime regime = kSplit;
  bool usual = false;         // whether the kernel is specialized for the usual loss
  int group = 1;              // blocks that share a row
  int packets_of_thread = 0;  // packets that a thread holds in shared memory
};

const char* name_of(Regime regime);

// The largest number of classes of a regime; 0 if it has no kernel.
int64_t most_classes(Regime regime, Format format, bool usual, const Device& device);

// usual: the result of is_usual() for the loss. force: the name of a regime, which is used if the row fits, or null.
Plan plan(int64_t rows, int64_t classes, Format format, bool usual, const Device& device, const char* force = nullptr);

}  // namespace udskd::cuda
