// A tile of the image as the threads of a block see it: one thread per pixel, one warp per patch of 8x4 pixels, and the
// tile's list of Gaussians in batches, loaded together into shared memory and then culled by each warp for its patch.
#pragma once

#include <limits>
#include <utility>

#include "../kernel_args.h"
#include "../math/blend.h"
#include "launch.h"
#include "tunables.h"
#include "warp.h"

namespace gsfields::cuda {

using math::kTile;

constexpr int kTilePixels = kTile * kTile;  // also the threads of a block and the Gaussians of a batch
constexpr int kPatchWidth = 8, kPatchHeight = kWarp / kPatchWidth, kPatchesAlong = kTile / kPatchWidth;
constexpr int kPatches = kTilePixels / kWarp;
static_assert(kPatchesAlong * kPatchWidth == kTile && kTile % kPatchHeight == 0);

inline int64_t count_tiles(int64_t views, int width, int height) {
  return views * tiles_along(width) * tiles_along(height);
}

struct Tile {
  int64_t begin;  // where its list begins in ids
  unsigned view;
  int listed;  // how many Gaussians it lists
  int x0, y0;  // its corner in the image
};

// The host may not look at lists on the device, so that here what they promise is not relied upon.
template <class S>
__device__ Tile locate(const BlendInput<S>& in, unsigned index) {
  const unsigned tiles_x = unsigned(tiles_along(in.width)), tiles_y = unsigned(tiles_along(in.height));
  const unsigned view = index / (tiles_x * tiles_y), within = index - view * (tiles_x * tiles_y);
  const int64_t begin = math::max<int64_t>(in.tile_offsets[index], 0);
  const int64_t listed = math::min(in.tile_offsets[index + 1], in.pairs) - begin;
  Tile t;
  t.view = view, t.begin = begin;
  t.listed = int(math::max<int64_t>(math::min<int64_t>(listed, INT32_MAX), 0));
  t.x0 = int(within % tiles_x) * kTile, t.y0 = int(within / tiles_x) * kTile;
  return t;
}

// The pixel of this thread within its tile: warps lie side by side in patches, lanes within a patch.
__device__ inline int tile_x() {
  return int(threadIdx.x) / kWarp % kPatchesAlong * kPatchWidth + lane_id() % kPatchWidth;
}
__device__ inline int tile_y() {
  return int(threadIdx.x) / kWarp / kPatchesAlong * kPatchHeight + lane_id() / kPatchWidth;
}

// A Gaussian ready to be loaded by every tile that lists it, in three wide loads.
template <class S>
struct alignas(4 * sizeof(S)) Packed {
  math::PixelSplat<S> splat;
  math::Reach<S> reach;
};
static_assert(sizeof(Packed<float>) == 48);

// No exponent is less than what is not a number.
template <class S>
constexpr math::Reach<S> kNowhere = {0, 0, std::numeric_limits<S>::quiet_NaN()};

// Packs the Gaussians of all views, [B,N].
template <class S>
cudaError_t pack(const BlendInput<S>& in, Packed<S>* packed, cudaStream_t stream);

// A Gaussian of a batch as its pixels read it, all lanes the same at a time: in two wide loads.
template <class S>
struct alignas(4 * sizeof(S)) BatchSplat : math::PixelSplat<S> {};

// What else its warps need to cull it, each lane its own.
template <class S>
struct alignas(4 * sizeof(S)) Candidate {
  math::Reach<S> reach;
  int32_t id;
};

template <class S, int C>
struct alignas(sizeof(S) * (C == 1   ? 1
                            : C == 2 ? 2
                                     : 4)) BatchValues {
  S v[C];
};

// Each thread loads one Gaussian of list[first, first + count), count <= kTilePixels. An id that is none
// reaches nothing.
template <class S>
__device__ void load_batch(const BlendInput<S>& in, const Packed<S>* packed, const Tile& tile, int first, int count,
                           BatchSplat<S>* splats, Candidate<S>* candidates) {
  const int k = int(threadIdx.x);
  if (k >= count) return;
  const int32_t id = in.ids[tile.begin + first + k];
  if (id < 0 || id >= in.n) {
    candidates[k] = {kNowhere<S>, -1};
    return;
  }
  const Packed<S>& from = packed[int64_t(tile.view) * in.n + id];
  splats[k] = {from.splat}, candidates[k] = {from.reach, id};
}

// The values of the batch's Gaussians, C channels from `channel` on.
template <class S, int C>
__device__ void load_values(const BlendInput<S>& in, const Tile& tile, int channel, int count,
                            const Candidate<S>* candidates, BatchValues<S, C>* values) {
  const int k = int(threadIdx.x);
  if (k >= count || candidates[k].id < 0) return;
  const S* from = in.values + tile.view * in.values_stride + candidates[k].id * in.channels + channel;
#pragma unroll
  for (int c = 0; c < C; ++c) values[k].v[c] = channel + c < in.channels ? from[c] : S(0);
}

// Which of the batch's Gaussians [group, group + 32) reach the patch of this warp, one bit each. x, y: centre of this
// thread's pixel.
template <class S>
__device__ unsigned reaching_patch(S x, S y, int group, int count, const BatchSplat<S>* splats,
                                   const Candidate<S>* candidates) {
  const int lane = lane_id(), k = group + lane;
  const S left = x - S(lane % kPatchWidth), top = y - S(lane / kPatchWidth);
  const bool reaching = k < count && math::reaches(splats[k], candidates[k].reach, left, left + (kPatchWidth - 1), top,
                                                   top + (kPatchHeight - 1));
  return __ballot_sync(kFullWarp, reaching);
}

// How many channels a thread holds in registers: kernels are compiled for these counts, and pick_channels() calls
// f(std::integral_constant<int, C>()) with the smallest C >= channels, or else the largest.
template <class S>
struct ChannelCounts : std::integer_sequence<int, 1, 2, 3, 4, 8, 16> {
  static constexpr int most = 16;
};
template <>
struct ChannelCounts<double> : std::integer_sequence<int, 1, 4> {
  static constexpr int most = 4;
};

template <class F, int... Cs>
cudaError_t pick_from(std::integer_sequence<int, Cs...>, int most, int64_t channels, const F& f) {
  cudaError_t error = cudaErrorInvalidValue;
  (void)(((channels <= Cs || Cs == most) && ((error = f(std::integral_constant<int, Cs>())), true)) || ...);
  return error;
}
template <class S, class F>
cudaError_t pick_channels(int64_t channels, const F& f) {
  return pick_from(ChannelCounts<S>(), ChannelCounts<S>::most, channels, f);
}

}  // namespace gsfields::cuda
