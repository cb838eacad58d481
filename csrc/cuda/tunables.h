// The tunables of the CUDA kernels.
#pragma once

namespace gsfields::cuda {

// Threads per block.
constexpr int kProjectBlock = 128;
constexpr int kShBlock = 128;
constexpr int kPackBlock = 256;
constexpr int kRespondBlock = 128;
constexpr int kRespondSumBlock = 512;
constexpr int kContrastBlock = 128;
constexpr int kAdamBlock = 128;
constexpr int kFollowBlock = 128;
constexpr int kBagBlock = 128;
constexpr int kSeenBlock = 128;

constexpr bool is_block_size(int threads) { return threads % 32 == 0 && threads > 0 && threads <= 1024; }
static_assert(is_block_size(kProjectBlock) && is_block_size(kShBlock) && is_block_size(kPackBlock));
static_assert(is_block_size(kRespondBlock) && is_block_size(kRespondSumBlock));
static_assert(is_block_size(kContrastBlock) && is_block_size(kAdamBlock) && is_block_size(kBagBlock));
static_assert(is_block_size(kFollowBlock) && is_block_size(kSeenBlock));

// Blocks of these that a multiprocessor should hold: told so, the compiler takes the registers that divisions in double
// need; else it spills some.
constexpr int kWarpPerRowBlocks = 2;
static_assert((kProjectBlock & (kProjectBlock - 1)) == 0, "sums over the block halve it");

// SSIM. Stages of eleven rows per strip; channels that a block takes together, which its shared memory must hold with
// five pixels to either side.
constexpr int kSsimBlock = 128;
constexpr int kSsimStages = 5;
constexpr int kSsimMostChannels = 4;
static_assert(is_block_size(kSsimBlock) && kSsimStages > 0 && kSsimMostChannels > 0);
static_assert(3 * 11 * (kSsimBlock + 10 * kSsimMostChannels) * sizeof(double) <= 48 << 10, "static shared memory");

// Binning. A thread takes splats of up to so many rows of tiles, or tiles, alone; larger ones are for the whole warp.
constexpr int kBinBlock = 256;
constexpr int kBinRowsAlone = 8;
constexpr int kBinTilesAlone = 32;
static_assert(is_block_size(kBinBlock) && kBinRowsAlone >= 0 && kBinTilesAlone >= 0);

// Threads that fit on a multiprocessor.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kThreadsPerSm = 1024;
#else
constexpr int kThreadsPerSm = 1536;  // the fewest of the others
#endif

// Blocks of the blend that a multiprocessor should hold, which bounds their registers: 65536 / (256 · 6) leave 40 for a
// thread. Kernels with more channels, and those in double, take what they need.
constexpr int kBlendBlocks = 6, kBlendBackwardBlocks = 4;
template <class S>
constexpr int resident_blocks(int wanted, int channels, int threads) {
  const int most = kThreadsPerSm / threads;
  return sizeof(S) == 4 && channels <= 4 ? (wanted < most ? wanted : most) : 1;
}

// The same for a lift in float, of up to four columns and of more.
template <class S>
constexpr int resident_lifts(int columns) {
  return sizeof(S) == 4 ? (columns <= 4 ? 4 : 3) : 1;
}

// From so many channels on, blends in float are products of matrices on tensor cores. Not measured on a GPU.
constexpr int kWideChannels = 16;

// The gradients of the geometry over more channels than registers hold: Gaussians that a warp takes together, and
// channels at a time.
constexpr int kManyGaussians = 8, kManyChannels = 8;

// Sums in a fixed order: threads per block, and memory for the records that are summed at a time. Scenes under the
// emulator are small, but shall have several parts.
constexpr int kSumsBlock = 256;
#if defined(GSF_EMULATOR)
constexpr int kRecordBytes = 64 << 10;
#else
constexpr int kRecordBytes = 64 << 20;
#endif
static_assert(is_block_size(kSumsBlock));

// Channels of such a record where products of matrices make it.
constexpr int kWideRecord = 128;

}  // namespace gsfields::cuda
