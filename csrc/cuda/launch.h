// How kernels are launched and how they name shared memory. The tunables of all kernels are in tunables.h.
#pragma once

#include <cuda_runtime_api.h>
#if defined(GSFIELDS_NVTX)
#include <nvtx3/nvToolsExt.h>
#endif

#include <cstdint>

namespace gsfields::cuda {

inline int64_t blocks_for(int64_t items, int block) { return (items + block - 1) / block; }

// The tests run the same kernels on the CPU, with macros of their own.
#if defined(__CUDACC__)

// Launches the kernel for `blocks` blocks of `threads` threads and returns the error; no blocks are no launch.
// A kernel with several template arguments goes in parentheses. `bytes`: of dynamic shared memory.
#define GSF_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...)                                            \
  ((blocks) > INT32_MAX ? cudaErrorInvalidConfiguration                                                           \
   : (blocks) > 0       ? (kernel<<<unsigned(blocks), threads, bytes, stream>>>(__VA_ARGS__), cudaGetLastError()) \
                        : cudaSuccess)
#define GSF_LAUNCH(kernel, blocks, threads, stream, ...) \
  GSF_LAUNCH_SHARED(kernel, blocks, threads, 0, stream, __VA_ARGS__)

// An array in shared memory: GSF_SHARED(float, rows, [12][128]). The pointer `name` to the dynamic shared memory.
#define GSF_SHARED(type, name, dims) __shared__ type name dims
#define GSF_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char gsf_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(gsf_dynamic_shared)

#endif

// A named range on the timeline of a profiler, until the end of the scope: built with GSFIELDS_NVTX=1.
#if defined(GSFIELDS_NVTX)
struct Range {
  explicit Range(const char* name) { nvtxRangePushA(name); }
  ~Range() { nvtxRangePop(); }
};
#define GSF_RANGE(name) const gsfields::cuda::Range gsf_range(name)
#else
#define GSF_RANGE(name) static_assert(true)
#endif

// Runs a step of a stage, a range of its own; an error ends the stage and is returned.
#define GSF_STEP(...)                                                                \
  do {                                                                               \
    GSF_RANGE(#__VA_ARGS__);                                                         \
    if (const cudaError_t error = (__VA_ARGS__); error != cudaSuccess) return error; \
  } while (false)

}  // namespace gsfields::cuda
