#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <vector>

#include "thread.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulator's context switch is written for x86-64 Linux"
#endif

namespace emu {
namespace {

constexpr size_t kMostKept = 16384;  // stacks; more would hold more memory than they save time

struct Region {
  char* base;
  size_t count;
};
std::mutex idle_lock;
std::vector<Region>& idle() {
  static auto* regions = new std::vector<Region>;  // never destroyed: threads may end after static objects do
  return *regions;
}

char* map_stacks(size_t count) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* base = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (base == MAP_FAILED) die("no memory for the stacks of %zu threads", count);
  return static_cast<char*>(base);
}

// Whoever is given these addresses next, such as Python for its objects, must not find the red zones of fibers that
// never returned.
void unmap_stacks(char* base, size_t count) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base, count * kStackBytes);
#endif
  munmap(base, count * kStackBytes);
}

}  // namespace

constinit thread_local Home home;

// All other registers are the caller's to save, as for any function call.
__attribute__((naked, noinline)) void swap_stacks(void** /*save*/, void* /*load*/) {
  asm(R"(
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
  )");
}

void Fiber::start(char* stack, void (*main)()) {
  stack_ = stack, main_ = main;
  auto* top = reinterpret_cast<uintptr_t*>(stack + kStackBytes) - 2;  // on entry, rsp is 8 modulo 16
  *--top = 0;                                                         // where first() returns to: nowhere
  *--top = reinterpret_cast<uintptr_t>(&first);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  sp_ = top;
}

// Not instrumented, since its frame is never left: its red zones would be in the way of the stack's next fiber.
__attribute__((no_sanitize("address", "undefined"))) void Fiber::first() {
  arrived(nullptr, &home.stack, &home.bytes);
  home.running->main_();
  home.running->leave(true);
  __builtin_unreachable();
}

void Fiber::too_deep() { die("a thread needs more than the %zu bytes of stack that it has", kStackBytes); }

Stacks::Stacks(size_t count) : base_(nullptr), count_(count) {
  const std::lock_guard lock(idle_lock);
  if (!idle().empty()) {
    const Region last = idle().back();
    idle().pop_back();
    if (last.count >= count) {
      base_ = last.base, count_ = last.count;
      return;
    }
    unmap_stacks(last.base, last.count);
  }
  base_ = map_stacks(count);
}

Stacks::~Stacks() {
  const std::lock_guard lock(idle_lock);
  if (count_ > kMostKept) {
    unmap_stacks(base_, count_);
  } else {
    idle().push_back({base_, count_});
  }
}

}  // namespace emu
