// A function with a stack of its own, entered and left at will. Switching takes some 20 instructions on x86-64;
// elsewhere ucontext does it, a hundred times slower for the system call in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#if !defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_UCONTEXT
#endif
#if defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_on_cpu {

class Stack {
 public:
  explicit Stack(size_t bytes) : bytes_(bytes), memory_(new unsigned char[bytes]) {}
  // Forgets what AddressSanitizer knows of the frames of a function that was left for good.
  void forget_frames() const {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(begin(), size());
#endif
  }
  unsigned char* begin() const { return memory_.get(); }
  unsigned char* end() const { return begin() + bytes_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  std::unique_ptr<unsigned char[]> memory_;  // not initialised: pages come into being when touched
};

using Main = void (*)(void*);

#if defined(CUDA_ON_CPU_UCONTEXT)

class Fiber {
 public:
  void start(const Stack& stack, Main main, void* argument) {
    stack.forget_frames();
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack.begin();
    inside_.uc_stack.ss_size = stack.size();
    inside_.uc_link = nullptr;
    const auto m = reinterpret_cast<uintptr_t>(main), a = reinterpret_cast<uintptr_t>(argument);
    makecontext(&inside_, reinterpret_cast<void (*)()>(&trampoline), 4, unsigned(m >> 32), unsigned(m),
                unsigned(a >> 32), unsigned(a));
  }
  void enter() { swapcontext(&outside_, &inside_); }
  void leave() { swapcontext(&inside_, &outside_); }

 private:
  static void trampoline(unsigned m1, unsigned m0, unsigned a1, unsigned a0) {  // makecontext passes ints only
    reinterpret_cast<Main>(uintptr_t(m1) << 32 | m0)(reinterpret_cast<void*>(uintptr_t(a1) << 32 | a0));
  }
  ucontext_t inside_, outside_;
};

#else

extern "C" void cuda_on_cpu_switch(void** save, void* load);

// Saves what a function must preserve, changes stacks, restores. A new fiber's stack looks as if it had been left.
asm(R"(
.text
.p2align 4
.globl cuda_on_cpu_switch
.weak cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  endbr64
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
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");

class Fiber {
 public:
  void start(const Stack& stack, Main main, void* argument) {
    stack.forget_frames();
    main_ = main;
    argument_ = argument;
    auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack.end()) & ~uintptr_t(15));
    *--top = nullptr;  // keeps the stack as after a call: 8 past a multiple of 16
    *--top = reinterpret_cast<void*>(&trampoline);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    starting() = this;
    inside_ = top;
  }
  void enter() {
    starting() = this;
    cuda_on_cpu_switch(&outside_, inside_);
  }
  void leave() { cuda_on_cpu_switch(&inside_, outside_); }

 private:
  static Fiber*& starting() {
    static Fiber* fiber;
    return fiber;
  }
  static void trampoline() {
    Fiber* self = starting();
    self->main_(self->argument_);
  }
  void *inside_ = nullptr, *outside_ = nullptr;
  Main main_ = nullptr;
  void* argument_ = nullptr;
};

#endif

}  // namespace cuda_on_cpu
