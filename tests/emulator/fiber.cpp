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

constexpr size_t kMaxKept = 16384;  // stacks that are kept for later launches (unmeasured)

struct Region {
  char* base;
  size_t count;
};
std::mutex idle_lock;
std::vector<Region>& idle() {
  static auto* regions = new std::vector<Region>;  // never destroyed, since threads may outlive static objects
  return *regions;
}

char* map_stacks(size_t count) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* base = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (base == MAP_FAILED) fatal("no memory for the stacks of %zu threads", count);
  return static_cast<char*>(base);
}

// Fibers that never return leave red zones. They must be removed before the addresses are mapped again, for instance
// for Python's objects.
void unmap_stacks(char* base, size_t count) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base, count * kStackBytes);
#endif
  munmap(base, count * kStackBytes);
}

}  // namespace

constinit thread_local CallerContext caller;

// Saves the callee-saved registers. The caller saves the others, as for any function call.
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
  *--top = 0;  // the return address of entry(), which never returns
  *--top = reinterpret_cast<uintptr_t>(&entry);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  sp_ = top;
}

// Not instrumented: this function never returns, so that its red zones would stay on the stack for the next fiber.
__attribute__((no_sanitize("address", "undefined"))) void Fiber::entry() {
  arrived(nullptr, &caller.stack, &caller.bytes);
  caller.running->main_();
  caller.running->leave(true);
  __builtin_unreachable();
}

void Fiber::stack_overflow() { fatal("a thread needs more than the %zu bytes of stack that it has", kStackBytes); }

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
  if (count_ > kMaxKept) {
    unmap_stacks(base_, count_);
  } else {
    idle().push_back({base_, count_});
  }
}

}  // namespace emu
