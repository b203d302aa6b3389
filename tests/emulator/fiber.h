// Execution contexts that one OS thread switches between: a fiber for each CUDA thread.
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
constexpr size_t kSpareBytes = 4 << 10;  // that a thread which suspends itself has to leave

class Fiber {
 public:
  // The stack is the lowest address of kStackBytes; an earlier fiber may have left anything there.
  void start(char* stack, void (*main)());
  // Runs it until it suspends itself or its main returns. Called by the OS thread, not by another fiber.
  void resume();
  // Called by the fiber that runs: back to whoever resumed it.
  static void suspend();

 private:
  [[noreturn]] static void first();
  [[noreturn]] static void too_deep();
  void leave(bool forever);

  void* sp_ = nullptr;
  char* stack_ = nullptr;
  void (*main_)() = nullptr;
};

// Stacks for one OS thread. They outlive it: the next one that asks gets them with their pages already there.
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

// Saves the caller's registers and where it is, and goes on where another has done so.
void swap_stacks(void** save, void* load);

// Where the running fiber goes back to.
struct Home {
  Fiber* running = nullptr;
  void* sp = nullptr;
  const void* stack = nullptr;  // AddressSanitizer wants to know the stack that it returns to
  size_t bytes = 0;
};
extern constinit thread_local Home home __attribute__((tls_model("initial-exec")));

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
  home.running = this;
  leaving(&fake, stack_, kStackBytes);
  swap_stacks(&home.sp, sp_);
  arrived(fake, nullptr, nullptr);
  if (static_cast<char*>(sp_) < stack_ + kSpareBytes) too_deep();
}

inline void Fiber::suspend() { home.running->leave(false); }

inline void Fiber::leave(bool forever) {
  void* fake = nullptr;
  leaving(forever ? nullptr : &fake, home.stack, home.bytes);
  swap_stacks(&sp_, home.sp);
  arrived(fake, &home.stack, &home.bytes);
}

}  // namespace emu
