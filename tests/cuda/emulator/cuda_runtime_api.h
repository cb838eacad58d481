// Lets g++ compile the CUDA kernels and run them on the CPU: what they use of CUDA's headers, and a launch that takes
// the threads of one block in turns, each on a stack of its own. A thread runs until its next __syncthreads(), then the
// next one does; a block in which some threads end while others wait for them is an error.
#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

enum cudaError_t { cudaSuccess };
typedef struct CUstream_st* cudaStream_t;
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

#define __global__
#define __device__
#define __shared__ static  // blocks run one after another
#define GSF_SHARED(type, name, dims) __shared__ type name dims
#define __launch_bounds__(threads)
#define GSF_LAUNCH(kernel, blocks, threads, stream, ...) \
  (void(stream), emulator::launch(unsigned(blocks), unsigned(threads), [&] { kernel(__VA_ARGS__); }))

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

namespace emulator {

struct Thread {
  static constexpr size_t kStack = 64 << 10;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;
  bool ended;
};

inline bool reversed = false;  // the order in which the threads of a block take turns
inline std::function<void()> kernel;
inline ucontext_t scheduler;
inline Thread* running;

inline void run_thread() {
  kernel();
  running->ended = true;
}

inline void start(Thread& t) {
  getcontext(&t.context);
  t.context.uc_stack.ss_sp = t.stack.get();
  t.context.uc_stack.ss_size = Thread::kStack;
  t.context.uc_link = &scheduler;
  t.ended = false;
  makecontext(&t.context, run_thread, 0);
}

inline cudaError_t launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  static std::vector<Thread> block;
  if (block.size() < threads) block = std::vector<Thread>(threads);
  kernel = body;
  gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (unsigned t = 0; t < threads; ++t) start(block[t]);
    unsigned ended = 0;
    while (ended == 0) {
      for (unsigned turn = 0; turn < threads; ++turn) {
        threadIdx.x = reversed ? threads - 1 - turn : turn;
        running = &block[threadIdx.x];
        swapcontext(&scheduler, &running->context);
        ended += running->ended;
      }
    }
    if (ended != threads) {
      std::fprintf(stderr, "%u of %u threads of a block ended while the others wait for them\n", ended, threads);
      std::abort();
    }
  }
  return cudaSuccess;
}

}  // namespace emulator

inline void __syncthreads() { swapcontext(&emulator::running->context, &emulator::scheduler); }
