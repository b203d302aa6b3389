// Fibers: execution contexts between which one OS thread switches, one for each CUDA thread.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // red zones make frames large
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kSpareBytes = 4 << 10;  // that must be free when a fiber suspends itself

class Fiber {
 public:
  // `stack` is the lowest address of kStackBytes with any content.
  void start(char* stack, void (*main)());
  // Runs the fiber until it suspends itself or its main function returns. Not to be called in a fiber.
  void resume();
  // Called in the running fiber: returns to the caller of resume().
  static void suspend();

 private:
  [[noreturn]] static void entry();
  [[noreturn]] static void stack_overflow();
  void leave(bool forever);

  void* sp_ = nullptr;
  char* stack_ = nullptr;
  void (*main_)() = nullptr;
};

// The stacks of one OS thread. They are kept for the next OS thread, which thus needs no page faults.
class Stacks {
 public:
  explicit Stacks(size_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  char* operator[](size_t i) const { return base_ + i * kStackBytes; }

 private:
  char* base_;
  size_t count_;
};

// Saves the registers and the stack pointer of the caller, and loads those that another call has saved.
void swap_stacks(void** save, void* load);

// The context to which the running fiber returns.
struct CallerContext {
  Fiber* running = nullptr;
  void* sp = nullptr;
  const void* stack = nullptr;  // AddressSanitizer needs the bounds of the stack to which the fiber returns
  size_t bytes = 0;
};
extern constinit thread_local CallerContext caller __attribute__((tls_model("initial-exec")));

#if defined(__SANITIZE_ADDRESS__)
inline void leaving(void** fake, const void* to, size_t bytes) { __sanitizer_start_switch_fiber(fake, to, bytes); }
inline void arrived(void* fake, const void** from, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake, from, bytes);
}
#else
inline void leaving(void**, const void*, size_t) {}
inline void arrived(void*, const void**, size_t*) {}
#endif

inline void Fiber::resume() {
  void* fake = nullptr;
  caller.running = this;
  leaving(&fake, stack_, kStackBytes);
  swap_stacks(&caller.sp, sp_);
  arrived(fake, nullptr, nullptr);
  if (static_cast<char*>(sp_) < stack_ + kSpareBytes) stack_overflow();
}

inline void Fiber::suspend() { caller.running->leave(false); }

inline void Fiber::leave(bool forever) {
  void* fake = nullptr;
  leaving(forever ? nullptr : &fake, caller.stack, caller.bytes);
  swap_stacks(&sp_, caller.sp);
  arrived(fake, &caller.stack, &caller.bytes);
}

}  // namespace emu
