// Messages about errors, of one line each.
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "scheduler.h"

namespace emu {

constinit thread_local Thread* self = nullptr;
constinit thread_local const Launch* running = nullptr;

void fatal(const char* format, ...) {
  static std::atomic_flag aborting;
  if (aborting.test_and_set()) {
    for (;;) pause();  // another OS thread already prints its message
  }
  char message[1000];
  va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof message, format, values);
  va_end(values);
  std::fprintf(stderr, "cuda emulator: %s: %s\n", running ? running->kernel.c_str() : "host", message);
  std::abort();
}

namespace {

std::string place(const Thread& thread) {
  return std::string(thread.call) + " at " + thread.location.file_name() + ":" + std::to_string(thread.location.line());
}

std::string name(const Thread& thread) {
  const uint3 t = thread.index, b = thread.block->index;
  char text[120];
  std::snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", t.x, t.y, t.z, b.x, b.y, b.z);
  return text;
}

// The first thread of a block in this state, or null.
const Thread* waiting(const Block& block, Wait wait) {
  if (!block.started) return nullptr;
  for (const Thread& thread : block.threads) {
    if (thread.wait == wait) return &thread;
  }
  return nullptr;
}

// Reports a thread of the block that does not wait at the same barrier as `one`, if there is one.
void report_barrier(const Block& block, const Thread& one, const char* group) {
  for (const Thread& other : block.threads) {
    if (other.wait == Wait::kExited) {
      fatal("%s is reached by only some threads of the %s: %s has exited", place(one).c_str(), group,
            name(other).c_str());
    }
    if (other.wait != one.wait || place(other) != place(one)) {
      fatal("threads of one %s wait at different barriers: %s in %s, %s in %s", group, name(one).c_str(),
            place(one).c_str(), name(other).c_str(), place(other).c_str());
    }
  }
}

}  // namespace

void report_deadlock(const std::vector<Block>& group) {
  for (const Block& block : group) {
    if (const Thread* idle = waiting(block, Wait::kYield)) {
      fatal("deadlock: %s waits, in %s, for something that no block which runs at the same time will do",
            name(*idle).c_str(), place(*idle).c_str());
    }
  }
  for (const Block& block : group) {
    if (const Thread* lane = waiting(block, Wait::kWarp)) {
      fatal("deadlock: %s waits in %s with the mask %08x for lanes that do not arrive", name(*lane).c_str(),
            place(*lane).c_str(), lane->mask);
    }
  }
  for (const Block& block : group) {
    if (const Thread* one = waiting(block, Wait::kBlock)) report_barrier(block, *one, "block");
  }
  for (const Block& block : group) {
    const Thread* one = waiting(block, Wait::kCluster);
    for (const Block& other : group) {
      if (one) report_barrier(other, *one, "cluster");
    }
  }
  fatal("deadlock");
}

}  // namespace emu
