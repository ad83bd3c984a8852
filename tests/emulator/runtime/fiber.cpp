#include "runtime/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

// Address space, not memory: pages are committed when touched. A sanitizer's report, written on the
// stack of the fiber at fault, needs far more than a kernel does.
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;
constexpr size_t kLowestFrameBytes = 512;  // generous for begin()

// The fiber being started. begin() has no argument: neither way of switching passes one portably.
thread_local Fiber* starting = nullptr;

}  // namespace

#ifndef TRAJMATCH_EMULATOR_UCONTEXT

// Pushes the registers that a function must preserve, stores the stack pointer in *save, and
// returns on the stack `load`, which an earlier call (or Fiber::prepare) left in the same state.
extern "C" void trajmatch_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl trajmatch_emulator_switch
.type trajmatch_emulator_switch, @function
trajmatch_emulator_switch:
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
.size trajmatch_emulator_switch, .-trajmatch_emulator_switch
)");

#endif

Fiber::Fiber() {
  void* mapped = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapped);
  if (mprotect(mapping_, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
}

Fiber::~Fiber() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(mapping_ + kGuardBytes, kStackBytes);
#endif
  munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::prepare(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  fiber_fake_stack_ = nullptr;
  char* stack = mapping_ + kGuardBytes;
#ifdef __SANITIZE_ADDRESS__
  // Frames that never returned leave their red zones behind: all of an unfinished fiber's, and
  // begin() of any.
  const size_t stale = finished_ ? kLowestFrameBytes : kStackBytes;
  __asan_unpoison_memory_region(stack + kStackBytes - stale, stale);
#endif
  finished_ = false;
#ifdef TRAJMATCH_EMULATOR_UCONTEXT
  getcontext(&fiber_context_);
  fiber_context_.uc_stack.ss_sp = stack;
  fiber_context_.uc_stack.ss_size = kStackBytes;
  fiber_context_.uc_link = nullptr;
  makecontext(&fiber_context_, &Fiber::begin, 0);
#else
  // What the switch pops: six registers, then the address that `ret` jumps to. The zero above it is
  // begin()'s return address: it ends a backtrace, and it gives the alignment of a call.
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::begin);
  for (int preserved = 0; preserved < 6; ++preserved) *--top = nullptr;
  fiber_stack_pointer_ = top;
#endif
}

void Fiber::begin() {
  Fiber* self = starting;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &self->scheduler_stack_bottom_,
                                  &self->scheduler_stack_size_);
#endif
  self->entry_(self->argument_);
  self->finished_ = true;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, self->scheduler_stack_bottom_,
                                 self->scheduler_stack_size_);
#endif
  self->switch_to_scheduler();  // for the last time
}

void Fiber::resume() {
  starting = this;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, mapping_ + kGuardBytes, kStackBytes);
#endif
#ifdef TRAJMATCH_EMULATOR_UCONTEXT
  swapcontext(&scheduler_context_, &fiber_context_);
#else
  trajmatch_emulator_switch(&scheduler_stack_pointer_, fiber_stack_pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::switch_to_scheduler() {
#ifdef TRAJMATCH_EMULATOR_UCONTEXT
  swapcontext(&fiber_context_, &scheduler_context_);
#else
  trajmatch_emulator_switch(&fiber_stack_pointer_, scheduler_stack_pointer_);
#endif
}

void Fiber::suspend() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fiber_fake_stack_, scheduler_stack_bottom_,
                                 scheduler_stack_size_);
#endif
  switch_to_scheduler();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber_fake_stack_, &scheduler_stack_bottom_,
                                  &scheduler_stack_size_);
#endif
}

}  // namespace emulator
