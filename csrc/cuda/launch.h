// The tunables of the CUDA kernels, and how kernels are launched.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gsfields::cuda {

constexpr int kProjectBlock = 128;  // threads per block: of the projection,
constexpr int kShBlock = 128;       // of the spherical harmonics

constexpr bool is_block_size(int threads) { return threads % 32 == 0 && threads > 0 && threads <= 1024; }
static_assert(is_block_size(kProjectBlock) && is_block_size(kShBlock));
static_assert((kProjectBlock & (kProjectBlock - 1)) == 0, "sums over the block halve it");

inline int64_t blocks_for(int64_t items, int block) { return (items + block - 1) / block; }

// Launches the kernel for `blocks` blocks of `threads` threads and returns the error; no blocks are no launch.
// The tests run the same kernels on the CPU, with a macro of their own.
#if defined(__CUDACC__)
#define GSF_LAUNCH(kernel, blocks, threads, stream, ...) \
  ((blocks) > 0 ? (kernel<<<unsigned(blocks), threads, 0, stream>>>(__VA_ARGS__), cudaGetLastError()) : cudaSuccess)
#endif

}  // namespace gsfields::cuda
