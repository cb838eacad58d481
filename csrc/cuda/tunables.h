// The tunables of the CUDA kernels.
#pragma once

namespace gsfields::cuda {

// Threads per block.
constexpr int kProjectBlock = 128;
constexpr int kShBlock = 128;

constexpr bool is_block_size(int threads) { return threads % 32 == 0 && threads > 0 && threads <= 1024; }
static_assert(is_block_size(kProjectBlock) && is_block_size(kShBlock));
static_assert((kProjectBlock & (kProjectBlock - 1)) == 0, "sums over the block halve it");

}  // namespace gsfields::cuda
