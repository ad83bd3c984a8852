// A fiber: a call stack that is entered and left by an ordinary function call, without the kernel.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(TRAJMATCH_EMULATOR_UCONTEXT)
#define TRAJMATCH_EMULATOR_UCONTEXT  // the assembly switch exists for x86-64 only
#endif
#ifdef TRAJMATCH_EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Sets the stack up so that the next resume() calls entry(argument). A fiber that was left
  // unfinished may be prepared anew; what its frames held is forgotten without running destructors.
  void prepare(void (*entry)(void*), void* argument);

  void resume();   // by the scheduler: runs the fiber until it suspends or its entry returns
  void suspend();  // by the fiber: returns to the caller of resume()

 private:
  static void begin();
  void switch_to_scheduler();

#ifdef TRAJMATCH_EMULATOR_UCONTEXT
  ucontext_t fiber_context_{};
  ucontext_t scheduler_context_{};
#else
  void* fiber_stack_pointer_ = nullptr;
  void* scheduler_stack_pointer_ = nullptr;
#endif
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  char* mapping_ = nullptr;  // one guard page, then the stack
  bool finished_ = true;     // no frame but the lowest is left on the stack
  // AddressSanitizer's view of the two stacks; unused without it.
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_bottom_ = nullptr;
  size_t scheduler_stack_size_ = 0;
  void* fiber_fake_stack_ = nullptr;
};

}  // namespace emulator
