#include "fibers.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif

// Below the stack lies a page that must not be touched.
size_t guard() { return size_t(sysconf(_SC_PAGESIZE)); }

char* make_stack() {
  void* memory = mmap(nullptr, guard() + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard(), PROT_NONE)) {
    std::perror("no stack for a fiber");
    std::abort();
  }
  return static_cast<char*>(memory) + guard();
}

void free_stack(char* stack) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack, kStack);  // frames that were abandoned
#endif
  munmap(stack - guard(), guard() + kStack);
}

Context* entering;

}  // namespace

#if defined(__x86_64__) && !defined(GSF_EMULATOR_UCONTEXT)

// void gsf_emulator_switch(void** save, void* load): what a function must preserve goes onto the old stack and comes
// from the new one.
extern "C" __attribute__((visibility("hidden"))) void gsf_emulator_switch(void** save, void* load);
asm(R"(
.text
.hidden gsf_emulator_switch
.globl gsf_emulator_switch
.type gsf_emulator_switch, @function
gsf_emulator_switch:
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
.size gsf_emulator_switch, .-gsf_emulator_switch
)");

#endif

Context::Context() {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* bottom;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &size_);
  pthread_attr_destroy(&attributes);
  bottom_ = bottom;
#endif
#if defined(GSF_EMULATOR_TSAN)
  identity_ = __tsan_get_current_fiber();
#endif
}

Context::Context(void (*entry)()) : entry_(entry), stack_(make_stack()) {
#if !defined(__x86_64__) || defined(GSF_EMULATOR_UCONTEXT)
  getcontext(&registers_);
  registers_.uc_stack.ss_sp = stack_, registers_.uc_stack.ss_size = kStack;
  registers_.uc_link = nullptr;
  makecontext(&registers_, enter, 0);
#else
  // As if enter() had been interrupted before its first instruction: six registers, the address to go to, and the
  // place of a return address, which aligns the stack.
  void** top = reinterpret_cast<void**>(stack_ + kStack) - 8;
  top[6] = reinterpret_cast<void*>(&Context::enter);
  stack_pointer_ = top;
#endif
#if defined(__SANITIZE_ADDRESS__)
  bottom_ = stack_, size_ = kStack;
#endif
#if defined(GSF_EMULATOR_TSAN)
  identity_ = __tsan_create_fiber(0);
#endif
}

Context::~Context() {
#if defined(GSF_EMULATOR_TSAN)
  if (entry_) {
    // What it did, if it was abandoned, happened before what we do.
    void* const here = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(identity_, 0);
    __tsan_switch_to_fiber(here, 0);
    __tsan_destroy_fiber(identity_);
  }
#endif
  if (stack_) free_stack(stack_);
}

void Context::switch_to(Context& to) {
  entering = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
#if defined(GSF_EMULATOR_TSAN)
  __tsan_switch_to_fiber(to.identity_, 1);  // 1: the switch orders nothing
#endif
#if !defined(__x86_64__) || defined(GSF_EMULATOR_UCONTEXT)
  swapcontext(&registers_, &to.registers_);
#else
  gsf_emulator_switch(&stack_pointer_, to.stack_pointer_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Context::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  entering->entry_();
  std::abort();
}

}  // namespace emulator
