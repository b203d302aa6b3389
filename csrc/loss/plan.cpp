#include "plan.h"

#include <algorithm>
#include <cstring>

namespace udskd::cuda {
namespace {

constexpr const char* kNames[kRegimes] = {"lanes8",   "warp",   "warp8",   "block128",
                                          "block256", "shared", "cluster", "split"};
constexpr int kMostCluster = 8;         // the largest cluster that every GPU with clusters supports
constexpr int64_t kReserved = 8 << 10;  // bytes of shared memory for thread groups, totals and the system

// Packets of a row, whatever its alignment.
int64_t packets(int64_t classes, Format format) { return (classes + 2 * kClassesOf[format] - 2) / kClassesOf[format]; }

// Packets of each of three networks that a thread can hold in a block's shared memory.
int64_t room(int64_t bytes, Format format) {
  return (bytes - kReserved) / (3 * 16 * kWordsOf[format] * kLanes[kInShared]);
}

int64_t packets_of_thread(int64_t classes, Format format, int group) {
  const int64_t of_block = (packets(classes, format) + group - 1) / group;
  return (of_block + kLanes[kInShared] - 1) / kLanes[kInShared];
}

// If possible, two blocks share a multiprocessor: one computes while the other waits for memory.
int smallest_cluster(int64_t classes, Format format, const Device& device) {
  for (int group = 2; group <= kMostCluster; group *= 2)
    if (packets_of_thread(classes, format, group) <= room(device.shared / 2, format)) return group;
  return kMostCluster;
}

// Enough blocks to fill the GPU, but no more rows at a time than fit into the L2 cache.
int split_group(int64_t rows, int64_t classes, Format format, const Device& device) {
  constexpr int kMost = 256, kBlocksOfSm = 1;
  const int64_t of_row = packets(classes, format), bytes = 3 * 16 * of_row, blocks = int64_t(device.sms) * kBlocksOfSm;
  int group = 1;
  const auto too_few = [&] { return rows * group < blocks || blocks / group * bytes > device.l2 * 6 / 10; };
  while (group < kMost && 2 * group <= blocks && of_row >= 4 * group * kLanes[kSplit] && too_few()) group *= 2;
  return group;
}

Plan with(Regime regime, bool usual, int64_t rows, int64_t classes, Format format, const Device& device) {
  Plan out{regime, usual, 1, 0};
  if (regime == kInCluster) {
    out.group = smallest_cluster(classes, format, device);
    while (out.group < kMostCluster && rows * out.group * 2 <= device.sms) out.group *= 2;
  }
  if (regime == kSplit) out.group = split_group(rows, classes, format, device);
  if (regime == kInShared || regime == kInCluster)
    out.packets_of_thread = int(packets_of_thread(classes, format, out.group));
  return out;
}

}  // namespace

const char* name_of(Regime regime) { return kNames[regime]; }

int64_t most_classes(Regime regime, Format format, bool usual, const Device& device) {
  if (!compiled(regime, format, usual)) return 0;
  const int64_t slack = kClassesOf[format] - 1;  // a row may begin with the last class of its first packet
  if (regime == kSplit) return kMostClasses;
  if (regime == kInCluster && device.capability < 90) return 0;
  int64_t of_thread = kInRegisters[regime][format];
  if (regime == kInShared) of_thread = room(device.shared, format);
  if (regime == kInCluster) of_thread = room(device.shared, format) * kMostCluster;
  return of_thread * kLanes[regime] * kClassesOf[format] - (of_thread ? slack : 0);
}

// The first regime of the table that suits and in which the row fits. With few rows, many threads share a row, to fill
// the GPU; with many rows, few threads, which spend less time on reductions.
Plan plan(int64_t rows, int64_t classes, Format format, bool usual, const Device& device, const char* force) {
  const auto holds = [&](Regime regime, bool alone) { return classes <= most_classes(regime, format, alone, device); };
  for (int regime = 0; force && regime < kRegimes; ++regime)
    for (const bool alone : {true, false})
      if (!std::strcmp(force, kNames[regime]) && (usual || !alone) && holds(Regime(regime), alone))
        return with(Regime(regime), alone, rows, classes, format, device);
  const bool few = rows * 2 <= device.sms && packets(classes, format) >= 8 * kLanes[kInCluster];
  const bool halves = packets_of_thread(classes, format, 1) <= room(device.shared / 2, format);
  const struct {
    Regime regime;
    bool suits;
  } table[] = {
      {kLanes8, rows >= 32 * int64_t(device.sms)},
      {kWarp1, true},
      {kWarp8, rows >= 16 * int64_t(device.sms)},
      {kBlock128, true},
      {kBlock256, true},
      {kInCluster, few},
      {kInShared, halves || device.capability < 90},
      {kInCluster, true},
  };
  for (const auto& [regime, suits] : table)
    if (suits && holds(regime, usual)) return with(regime, usual, rows, classes, format, device);
  return with(kSplit, false, rows, classes, format, device);
}

}  // namespace udskd::cuda
