// Stacks to run on, and the switch between them; sanitizers are told.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(GSF_EMULATOR_TSAN)  // not __SANITIZE_THREAD__: the emulator itself is not instrumented
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* tag);
void __tsan_release(void* tag);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif
#if !defined(__x86_64__) || defined(GSF_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

// Somewhere to switch to: a fiber, or what runs fibers.
class Context {
 public:
  Context();                          // where we are
  explicit Context(void (*entry)());  // a stack of its own, on which entry() runs; it must not return
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void switch_to(Context& to);

 private:
  static void enter();

  void (*const entry_)() = nullptr;
  char* stack_ = nullptr;
#if !defined(__x86_64__) || defined(GSF_EMULATOR_UCONTEXT)
  ucontext_t registers_;
#else
  void* stack_pointer_ = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
  void* identity_ = nullptr;
};

#if defined(GSF_EMULATOR_TSAN)
// What is before release(tag) happened before what is after acquire(tag).
inline void release(void* tag) { __tsan_release(tag); }
inline void acquire(void* tag) { __tsan_acquire(tag); }
#else
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// ThreadSanitizer overlooks accesses for as long as this lives.
class Unwatched {
 public:
  Unwatched() { begin(), ++depth_; }
  ~Unwatched() { end(), --depth_; }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;

  // For a fiber that is never gone back to.
  static void end_all() {
    for (; depth_ > 0; --depth_) end();
  }

 private:
#if defined(GSF_EMULATOR_TSAN)
  static void begin() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  static void end() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__), AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
  static void begin() {}
  static void end() {}
#endif
  static inline int depth_ = 0;
};

}  // namespace emulator
