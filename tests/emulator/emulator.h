// Runs CUDA kernels on the CPU: launches, streams and shared memory. Kernels are compiled by g++, with intrinsics.h and
// vectors.h for what nvcc knows by itself.
//
// Modelled, and reported with kernel, block, thread, file and line where a kernel breaks the rule:
//   threads   One fiber per thread, one block after the other. A thread runs until a barrier or a warp function; then
//             the first thread that can go on, in the order of the run, does. Orders of threads and of blocks: forward,
//             reverse, random by seed. Code that needs one order fails in another.
//   barriers  All threads of a block reach the same line, and none has exited before.
//   warps     All lanes that a mask names call the same function on the same line with the same mask, none has exited,
//             and none reads from a lane that the mask does not name. (Two calls on one line count as one.)
//   shared    Each array is an allocation of its own in each block, of exact size and filled with 0xFF; 48 KiB in all.
//   launches  Limits of grids and blocks give the error that CUDA gives; here blocks consist of whole warps.
//   streams   Launches, copies and fills only join their stream's queue. They run when the stream is synchronised, or
//             when all queues are drained, of which the one that was used last goes first: who reads early, or takes
//             another stream, finds old data. All calls are recorded. An error in a kernel drops what is queued.
//   races     Under ThreadSanitizer, accesses that no barrier, __syncwarp() or atomic orders are reported with both
//             lines, also between neighbouring blocks. Shuffles and ballots order no memory, as on a GPU.
//   bounds    Under AddressSanitizer, accesses outside of arrays, shared ones among them; under UBSan also accesses
//             that are not aligned, for which shared arrays get no more alignment than their type asks for.
//   rounding  Fast functions are off by up to the error that CUDA allows them, always the same for the same argument;
//             multiplications fuse with additions as g++ pleases, where the processor can.
//
// Not modelled: weak order of memory and fences, lanes in lock-step, __activemask(), waiting for another block or
// spinning on a flag, occupancy, __launch_bounds__, which multiply-adds nvcc fuses, one call of a barrier
// whose threads went a different number of times round a loop if they meet again on the same line, time. Memory of the
// "device" is memory of the process.
#pragma once

#define GSF_EMULATOR 1

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
typedef struct CUstream_st* cudaStream_t;  // any value is a stream

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetLastError();
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

namespace emulator {

// ---- control -------------------------------------------------------------------------------------------------------

enum class Order { forward, reverse, random };
void set_order(Order order, uint64_t seed = 0);

// Runs all that is queued.
cudaError_t drain();

// What the last kernel that failed, or the last launch that was refused, did wrong; empty if none since reset().
const std::string& last_report();

enum class Kind { launch, memset, host_to_device, device_to_host, device_to_device, synchronize };
struct Call {
  Kind kind;
  cudaStream_t stream;
  int64_t bytes;     // of copies and fills; dynamic shared memory of launches
  std::string name;  // of the kernel
};
const std::vector<Call>& calls();

// Forgets calls, report and what is queued; the order is forward again.
void reset();

// Keeps something alive until what is queued now has run.
void keep(std::shared_ptr<const void> object);

// Work of a stream that is no kernel: a stand-in for a function of a library.
void enqueue(const char* name, cudaStream_t stream, std::function<void()> work);

// ---- launches ------------------------------------------------------------------------------------------------------

struct Launch {
  const char* kernel;
  int64_t blocks, threads, shared_bytes;
};

cudaError_t launch(const Launch& launch, cudaStream_t stream, std::function<void()> thread);

// Runs a kernel now; false if it broke a rule. `thread` is the kernel with its arguments, for one thread.
bool run(const Launch& launch, const std::function<void()>& thread);

template <class Kernel, class... Args>
cudaError_t launch(const Launch& to, cudaStream_t stream, Kernel kernel, const Args&... args) {
  static_assert((std::is_trivially_copyable_v<Args> && ...), "arguments of a kernel are copied byte by byte");
  return launch(to, stream, std::function<void()>([=] { kernel(args...); }));
}

#define GSF_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...)                                   \
  ((blocks) > 0 ? emulator::launch({#kernel, int64_t(blocks), int64_t(threads), int64_t(bytes)}, stream, \
                                   [](auto... args) { kernel(args...); } __VA_OPT__(, ) __VA_ARGS__)     \
                : cudaSuccess)
#define GSF_LAUNCH(kernel, blocks, threads, stream, ...) \
  GSF_LAUNCH_SHARED(kernel, blocks, threads, 0, stream, __VA_ARGS__)

// ---- shared memory -------------------------------------------------------------------------------------------------

// One GSF_SHARED in the source.
struct SharedArray {
  const char* name;
  size_t bytes, alignment;
  uint64_t block = 0;  // the block that `data` belongs to
  void* data = nullptr;
};
void* shared_memory(SharedArray& array);
void* dynamic_shared_memory();

#define GSF_SHARED(type, name, dims)                                                                       \
  static constinit emulator::SharedArray name##_in_shared_memory{#name, sizeof(type dims), alignof(type)}; \
  auto& name = *static_cast<std::add_pointer_t<type dims>>(emulator::shared_memory(name##_in_shared_memory))
#define GSF_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator::dynamic_shared_memory())

// ---- threads that meet ---------------------------------------------------------------------------------------------

// A call in the source.
struct Site {
  const char* function;
  const char* file;
  int line;
};

// Ends the kernel with a report about the running thread. printf's format.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const Site& site, const char* format, ...);

// What the block's threads gave to a barrier: how many a non-zero one.
unsigned barrier(bool given, const Site& site);

using Meeting = void (*)(const void* function, void* const* payloads);
void meet(void* payload, Meeting meeting, const void* function, unsigned mask, bool orders_memory, const Site& site);

// A function of the warp: each lane that the mask names brings a payload, and the last to come calls f(payloads) for
// all, payloads[lane] being null for lanes that the mask does not name. Like a shuffle it orders no memory.
template <class F>
void collective(void* payload, const F& f, unsigned mask = 0xffffffffu, const char* function = "collective",
                const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const Meeting meeting = [](const void* f, void* const* payloads) { (*static_cast<const F*>(f))(payloads); };
  meet(payload, meeting, &f, mask, false, {function, file, line});
}

}  // namespace emulator
