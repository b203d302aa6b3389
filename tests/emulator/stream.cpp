// The stream: operations run immediately, on all cores, unless they are recorded. And the functions that the tests
// call.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "device.h"
#include "launch.h"
#include "scheduler.h"

namespace emu {
namespace {

struct Operation {
  std::string text;  // for the log
  std::function<void()> run;
};

std::mutex lock;
unsigned order_seed = 0;
bool recording = false;
std::vector<Operation> recorded;
std::string executed;  // the log

void execute(const Operation& operation) {
  executed += operation.text;
  operation.run();
}

void submit(Operation operation) {
  const std::lock_guard guard(lock);
  if (recording) {
    recorded.push_back(std::move(operation));
  } else {
    execute(operation);
  }
}

// OS threads take the groups of blocks in the order of the seed. Groups of several OS threads overlap in any order.
void run_grid(const Launch& launch) {
  Order order;
  std::vector<uint32_t> groups;
  order.start(order_seed, launch.blocks());
  order.first(groups, launch.blocks() / launch.group_blocks);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    Scheduler scheduler(launch, order_seed);
    for (size_t i; (i = next++) < groups.size();) scheduler.run(groups[i]);
  };
  std::vector<std::thread> others;
  const size_t wanted = std::min<size_t>(std::thread::hardware_concurrency(), groups.size());
  for (size_t i = 1; i < wanted; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

std::string describe(const Launch& launch) {
  return launch.kernel + " grid=" + std::to_string(launch.grid.x) + " block=" + std::to_string(launch.block.x) +
         " shared=" + std::to_string(launch.shared) + " cluster=" + std::to_string(launch.cluster) +
         (launch.cooperative ? " group=" + std::to_string(launch.group_blocks) : "") + "\n";
}

}  // namespace

void submit(const void* kernel, Launch launch) {
  if (failed(check(kernel, launch)) != cudaSuccess) return;
  std::string text = describe(launch);
  submit(Operation{std::move(text), [launch = std::move(launch)] { run_grid(launch); }});
}

bool is_recording() {
  const std::lock_guard guard(lock);
  return recording;
}

void submit_memset(void* to, int value, size_t bytes) {
  submit(Operation{"memset " + std::to_string(bytes) + "\n", [=] { std::memset(to, value, bytes); }});
}

}  // namespace emu

#define FOR_TESTS extern "C" __attribute__((visibility("default")))

// The order of blocks, warps and lanes: 0 ascending, 1 descending, else random with that seed.
FOR_TESTS void emulator_order(unsigned seed) { emu::order_seed = seed; }

FOR_TESTS void emulator_capture_begin() {
  const std::lock_guard guard(emu::lock);
  emu::recorded.clear();
  emu::recording = true;
}

// Returns the number of recorded operations.
FOR_TESTS int emulator_capture_end() {
  const std::lock_guard guard(emu::lock);
  emu::recording = false;
  return int(emu::recorded.size());
}

FOR_TESTS void emulator_replay() {
  const std::lock_guard guard(emu::lock);
  for (const emu::Operation& operation : emu::recorded) emu::execute(operation);
}

// The log: a line for each operation that ran since the log was last read. Returns its length with the final zero; if
// `size` is large enough, also copies and empties it.
FOR_TESTS int emulator_log(char* to, int size) {
  const std::lock_guard guard(emu::lock);
  const int needed = int(emu::executed.size()) + 1;
  if (needed > size) return needed;
  std::memcpy(to, emu::executed.c_str(), size_t(needed));
  emu::executed.clear();
  return needed;
}
