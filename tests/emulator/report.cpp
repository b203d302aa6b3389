// What went wrong, in one line.
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "gang.h"

namespace emu {

constinit thread_local Thread* self = nullptr;
constinit thread_local const Launch* running = nullptr;

void die(const char* format, ...) {
  static std::atomic_flag dying;
  if (dying.test_and_set()) {
    for (;;) pause();  // another OS thread is already saying why
  }
  char what[1000];
  va_list values;
  va_start(values, format);
  std::vsnprintf(what, sizeof what, format, values);
  va_end(values);
  std::fprintf(stderr, "cuda emulator: %s: %s\n", running ? running->kernel.c_str() : "host", what);
  std::abort();
}

namespace {

std::string place(const Thread& thread) {
  return std::string(thread.call) + " at " + thread.here.file_name() + ":" + std::to_string(thread.here.line());
}

std::string name(const Thread& thread) {
  const uint3 t = thread.index, b = thread.block->index;
  char text[120];
  std::snprintf(text, sizeof text, "thread (%u, %u, %u) of block (%u, %u, %u)", t.x, t.y, t.z, b.x, b.y, b.z);
  return text;
}

// The first thread of a block that waits so, or null.
const Thread* waiting(const Block& block, Wait wait) {
  if (!block.started) return nullptr;
  for (const Thread& thread : block.threads) {
    if (thread.wait == wait) return &thread;
  }
  return nullptr;
}

// If a thread of the block waits so, and another of it does not wait there too, says so.
void explain_barrier(const Block& block, const Thread& one, const char* team) {
  for (const Thread& other : block.threads) {
    if (other.wait == Wait::kExited) {
      die("%s is reached by only some threads of the %s: %s has exited", place(one).c_str(), team, name(other).c_str());
    }
    if (other.wait != one.wait || place(other) != place(one)) {
      die("threads of one %s wait at different barriers: %s in %s, %s in %s", team, name(one).c_str(),
          place(one).c_str(), name(other).c_str(), place(other).c_str());
    }
  }
}

}  // namespace

void explain(const std::vector<Block>& gang) {
  for (const Block& block : gang) {
    if (const Thread* idle = waiting(block, Wait::kTurn)) {
      die("deadlock: %s waits, in %s, for what none that runs together with it will do", name(*idle).c_str(),
          place(*idle).c_str());
    }
  }
  for (const Block& block : gang) {
    if (const Thread* lane = waiting(block, Wait::kWarp)) {
      die("deadlock: %s waits in %s with the mask %08x for lanes that do not come", name(*lane).c_str(),
          place(*lane).c_str(), lane->mask);
    }
  }
  for (const Block& block : gang) {
    if (const Thread* one = waiting(block, Wait::kBlock)) explain_barrier(block, *one, "block");
  }
  for (const Block& block : gang) {
    const Thread* one = waiting(block, Wait::kCluster);
    for (const Block& other : gang) {
      if (one) explain_barrier(other, *one, "cluster");
    }
  }
  die("deadlock");
}

}  // namespace emu
