// Which kernel a problem gets on a GPU: one small table, plain C++, so that it can be printed and tested anywhere.
#pragma once

#include <cstdint>

#include "../common/cuda/limits.h"

namespace udskd::cuda {

constexpr int64_t kMostClasses = 1 << 30;  // counted in 32 bits

enum Regime : int { kLanes8, kWarp1, kWarp8, kBlock128, kBlock256, kInShared, kInCluster, kSplit, kRegimes };
enum Format : int { kFloat, kBFloat16, kHalf, kFormats };  // of all networks; others have a kernel of their own

constexpr int kLanes[kRegimes] = {8, 32, 32, 128, 256, 256, 256, 256};  // threads that share a row, in one block
// Packets of 16 bytes that a thread keeps in registers. Rows of the last three are elsewhere.
constexpr int kInRegisters[kRegimes][kFormats] = {{4, 2, 2}, {1, 1, 1}, {8, 4, 4}, {2, 1, 1}, {3, 1, 2}};
constexpr int kClassesOf[kFormats] = {4, 8, 8};  // of a packet
constexpr int kWordsOf[kFormats] = {1, 1, 2};    // of 16 bytes, that a packet takes where it is kept

// Which are compiled for the usual loss alone, and which for any: neither half nor what is unusual is worth them all.
constexpr bool compiled(Regime regime, Format format, bool usual) {
  return usual ? regime != kSplit && format != kHalf : regime == kWarp1 || regime == kBlock128 || regime == kSplit;
}

struct Plan {
  Regime regime = kSplit;
  bool usual = false;         // by a kernel for the usual loss alone
  int group = 1;              // blocks that share a row
  int packets_of_thread = 0;  // in shared memory
};

const char* name_of(Regime regime);

// The most classes that a regime takes; 0: none.
int64_t most_classes(Regime regime, Format format, bool usual, const Device& device);

// usual: what is_usual() says of the loss. force: a regime's name, taken if it holds the row, or null.
Plan plan(int64_t rows, int64_t classes, Format format, bool usual, const Device& device, const char* force = nullptr);

}  // namespace udskd::cuda
