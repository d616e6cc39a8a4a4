// Switching between stacks: a few instructions on x86-64, ucontext elsewhere. Tells the sanitizers about it.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "races.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace hostcuda {

struct Context {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;  // null: the thread that called launch
  std::size_t size = 0;
  void* fiber = nullptr;  // ThreadSanitizer's
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
#if !defined(__x86_64__)
  ucontext_t machine;
#endif
};

#if defined(__x86_64__)
extern "C" void hostcuda_switch(void** save, void* load);
__asm__(R"(.text
.hidden hostcuda_switch
.globl hostcuda_switch
.type hostcuda_switch,@function
hostcuda_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size hostcuda_switch,.-hostcuda_switch
)");
#endif

#if defined(__SANITIZE_ADDRESS__)
inline const void* main_stack;
inline std::size_t main_size;
#endif

// Launches may come from different threads.
inline void forget_main_stack() {
#if defined(__SANITIZE_ADDRESS__)
  main_stack = nullptr;
#endif
}

inline void switch_context(Context& from, Context& to, bool dying) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(dying ? nullptr : &from.fake_stack, to.stack ? to.stack : main_stack,
                                 to.stack ? to.size : main_size);
#endif
  continue_as(to.fiber);
#if defined(__x86_64__)
  hostcuda_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.machine, &to.machine);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
  (void)dying;
}

// The first thing a new fiber does.
inline void entered_context() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!main_stack) main_stack = bottom, main_size = size;
#endif
}

inline void make_context(Context& c, std::size_t size) {
  constexpr std::size_t kPage = 4096;  // an unmapped page below the stack
  void* memory =
      mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);
  c.stack = static_cast<unsigned char*>(memory) + kPage;
  c.size = size;
  c.fiber = new_fiber();
}

// Puts a context at the start of `entry`, whatever it was doing.
inline void reset_context(Context& c, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(c.stack, c.size);
  c.fake_stack = nullptr;
#endif
#if defined(__x86_64__)
  void** sp = reinterpret_cast<void**>(c.stack + c.size) - 2;  // 16-byte aligned after the return
  *sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  c.stack_pointer = sp;
#else
  getcontext(&c.machine);
  c.machine.uc_stack.ss_sp = c.stack;
  c.machine.uc_stack.ss_size = c.size;
  c.machine.uc_link = nullptr;
  makecontext(&c.machine, entry, 0);
#endif
}

}  // namespace hostcuda
