// A tile of the image as the threads of a block see it: one thread per pixel, one warp per patch of 8x4 pixels (or per
// 32 of those that are sampled there), and the tile's list of Gaussians in batches, loaded together into shared memory
// and then culled by each warp for the box around its pixels.
#pragma once

#include <limits>

#include "../kernel_args.h"
#include "../math/blend.h"
#include "../math/storage.h"
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
  unsigned index;  // among the tiles of all views
  int64_t begin;   // where its list begins in ids
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
  t.index = index, t.view = view, t.begin = begin;
  t.listed = int(math::max<int64_t>(math::min<int64_t>(listed, INT32_MAX), 0));
  t.x0 = int(within % tiles_x) * kTile, t.y0 = int(within / tiles_x) * kTile;
  return t;
}

// ---- pixels --------------------------------------------------------------------------------------------------------

// The rows of the sampled pixels of a tile: [begin, end).
struct Samples {
  int64_t begin, end;
};

template <class S>
__device__ Samples samples_of(const BlendInput<S>& in, unsigned tile) {
  return {math::max<int64_t>(in.pixel_offsets[tile], 0), math::min(in.pixel_offsets[tile + 1], in.rows)};
}

// How often a block goes through its tile: once for all pixels, or once for every so many of those sampled there.
template <class S>
__device__ int count_rounds(const BlendInput<S>& in, unsigned tile) {
  if (!in.pixels) return 1;
  const Samples samples = samples_of(in, tile);
  return int((samples.end - samples.begin + kTilePixels - 1) / kTilePixels);
}

// The pixel of this thread within its tile if it takes all of them: warps lie side by side in patches, lanes within a
// patch.
__device__ inline int tile_x() {
  return int(threadIdx.x) / kWarp % kPatchesAlong * kPatchWidth + lane_id() % kPatchWidth;
}
__device__ inline int tile_y() {
  return int(threadIdx.x) / kWarp / kPatchesAlong * kPatchHeight + lane_id() / kPatchWidth;
}

// The row of this thread's pixel in images, or -1 where it has none.
template <class S>
__device__ int64_t find_row(const BlendInput<S>& in, const Tile& tile, int round) {
  if (in.pixels) {
    const Samples samples = samples_of(in, tile.index);
    const int64_t row = samples.begin + int64_t(round) * kTilePixels + threadIdx.x;
    return row < samples.end ? row : -1;
  }
  const int x = tile.x0 + tile_x(), y = tile.y0 + tile_y();
  return x < in.width && y < in.height ? (int64_t(tile.view) * in.height + y) * in.width + x : -1;
}

// The centre of this thread's pixel.
template <class S>
struct Centre {
  S x, y;
};

// The centres of the outermost pixels of a warp.
template <class S>
struct alignas(4 * sizeof(S)) Box {
  S left, right, top, bottom;
};

// Finds the centre of the pixel in this row, and the box of the warp, which goes to shared memory: boxes[kPatches].
template <class S>
__device__ Centre<S> find_pixel(const BlendInput<S>& in, const Tile& tile, int64_t row, Box<S>* boxes) {
  const S half = S(0.5);
  int x = tile.x0 + tile_x(), y = tile.y0 + tile_y();
  int right = x + kPatchWidth - 1, bottom = y + kPatchHeight - 1, left = x, top = y;  // of lane 0
  if (in.pixels) {
    constexpr int kNone = -(1 << 30);
    if (row >= 0) {  // a pixel outside the image stands for the nearest inside
      const int64_t pixels = int64_t(in.width) * in.height, at = in.pixels[row] - tile.view * pixels;
      const unsigned within = unsigned(math::max<int64_t>(math::min(at, pixels - 1), 0));
      x = int(within % unsigned(in.width)), y = int(within / unsigned(in.width));
    }
    right = warp_max(row >= 0 ? x : kNone), bottom = warp_max(row >= 0 ? y : kNone);
    left = -warp_max(row >= 0 ? -x : kNone), top = -warp_max(row >= 0 ? -y : kNone);
  }
  __syncwarp();  // all have left the box of the round before
  if (lane_id() == 0) boxes[threadIdx.x / kWarp] = {S(left) + half, S(right) + half, S(top) + half, S(bottom) + half};
  __syncwarp();
  return {S(x) + half, S(y) + half};
}

// ---- Gaussians -----------------------------------------------------------------------------------------------------

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

// What the threads of a block share: the Gaussians of a batch, [kTilePixels], and the boxes of its warps, [kPatches].
template <class S>
struct Batch {
  BatchSplat<S>* splats;
  Candidate<S>* candidates;
  Box<S>* boxes;
};

// Each thread loads one Gaussian of list[first, first + count), count <= kTilePixels. An id that is none
// reaches nothing.
template <class S>
__device__ void load_batch(const BlendInput<S>& in, const Packed<S>* packed, const Tile& tile, int first, int count,
                           const Batch<S>& batch) {
  const int k = int(threadIdx.x);
  if (k >= count) return;
  const int32_t id = in.ids[tile.begin + first + k];
  if (id < 0 || id >= in.n) {
    batch.candidates[k] = {kNowhere<S>, -1};
    return;
  }
  const Packed<S>& from = packed[int64_t(tile.view) * in.n + id];
  batch.splats[k] = {from.splat}, batch.candidates[k] = {from.reach, id};
}

// The values of the Gaussian that this thread has just loaded, C channels from `channel` on.
template <class S, int C>
__device__ void load_values(const BlendInput<S>& in, const Tile& tile, int channel, int count, const Batch<S>& batch,
                            BatchValues<S, C>* values) {
  const int k = int(threadIdx.x);
  if (k >= count || batch.candidates[k].id < 0) return;
  const int64_t from = tile.view * in.values_stride + batch.candidates[k].id * in.channels + channel;
#pragma unroll
  for (int c = 0; c < C; ++c)
    values[k].v[c] = channel + c < in.channels ? math::load_as<S>(in.values, from + c, in.storage) : S(0);
}

// Which of the batch's Gaussians [group, group + 32) reach the box of this warp, one bit each.
template <class S>
__device__ unsigned reaching_warp(int group, int count, const Batch<S>& batch) {
  const int k = group + lane_id();
  const Box<S> box = batch.boxes[threadIdx.x / kWarp];
  const bool reaching =
      k < count && math::reaches(batch.splats[k], batch.candidates[k].reach, box.left, box.right, box.top, box.bottom);
  return __ballot_sync(kFullWarp, reaching);
}

}  // namespace gsfields::cuda
