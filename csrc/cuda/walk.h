// How a block walks its tile's list: in batches, of which a warp visits the Gaussians that reach its box. Visitors see
// k, the place in the batch, and `position`, the place in the list. All threads of the block walk together, all lanes
// of a warp visit together.
#pragma once

#include "tile.h"

namespace gsfields::cuda {

// ---- from front to back --------------------------------------------------------------------------------------------

template <class S>
struct FrontPixel {
  S x, y, T;
  bool done;  // accepts no more Gaussians, or there is no such pixel
};

template <class S>
__device__ FrontPixel<S> start_front(const BlendInput<S>& in, const Tile& tile, int64_t row, Box<S>* boxes) {
  const Centre<S> centre = find_pixel(in, tile, row, boxes);
  return {centre.x, centre.y, 1, row < 0};
}

// The weight of the Gaussian in the pixel, 0 if it is skipped.
template <class S>
__device__ S step_into(FrontPixel<S>& p, const math::PixelSplat<S>& splat) {
  const S scaled = math::scaled_exponent(splat, p.x - splat.x, p.y - splat.y);
  const S alpha = math::pair_alpha(splat, scaled, falloff(scaled)), next = p.T * (1 - alpha);
  if (p.done || alpha == 0) return 0;
  p.done = next <= S(math::kTransmittanceMin);
  if (p.done) return 0;
  const S weight = alpha * p.T;
  p.T = next;
  return weight;
}

// Until all pixels are done. load(count): what else the batch needs; visit(k, position).
template <class S, class Load, class Visit>
__device__ void front_to_back(const BlendInput<S>& in, const Packed<S>* packed, const Tile& tile, const Batch<S>& batch,
                              const FrontPixel<S>& p, const Load& load, const Visit& visit) {
  for (int first = 0; first < tile.listed; first += kTilePixels) {
    if (__syncthreads_count(p.done) == kTilePixels) break;  // all have also left the batch before
    const int count = math::min(kTilePixels, tile.listed - first);
    load_batch(in, packed, tile, first, count, batch);
    load(count);
    __syncthreads();
    for (int group = 0; group < count && !__all_sync(kFullWarp, p.done); group += kWarp)
#pragma unroll 1
      for (unsigned left = reaching_warp(group, count, batch); left; left &= left - 1) {
        const int k = group + __ffs(int(left)) - 1;
        visit(k, first + k);
      }
  }
}

// ---- from back to front --------------------------------------------------------------------------------------------

// How much of the list the pixels of this warp blended, and those of the block.
struct Used {
  int by_warp, by_block;
};

__device__ inline Used find_used(int last) {
  GSF_SHARED(int, of_warp, [kPatches]);
  const int by_warp = warp_max(last);
  int by_block = by_warp;
  __syncthreads();  // all have read those of the round before
  if (lane_id() == 0) of_warp[threadIdx.x / kWarp] = by_warp;
  __syncthreads();
  for (int warp = 0; warp < kPatches; ++warp) by_block = math::max(by_block, of_warp[warp]);
  return {by_warp, by_block};
}

// Takes the last of the Gaussians left: its place in the batch.
__device__ inline int pop_last(unsigned& left, int group) {
  const int bit = kWarp - 1 - __clz(int(left));
  left ^= 1u << bit;
  return group + bit;
}

// Over what the block used. load(count) as above; visit(left, group, first): the Gaussians that `left` marks of 32 in
// the batch from `group` on, for pop_last(); the batch begins at `first` in the list.
template <class S, class Load, class Visit>
__device__ void back_to_front(const BlendInput<S>& in, const Packed<S>* packed, const Tile& tile, const Batch<S>& batch,
                              const Used& used, const Load& load, const Visit& visit) {
  if (used.by_block <= 0) return;
  for (int first = (used.by_block - 1) / kTilePixels * kTilePixels; first >= 0; first -= kTilePixels) {
    const int count = math::min(kTilePixels, used.by_block - first);
    __syncthreads();  // all have left the batch before
    load_batch(in, packed, tile, first, count, batch);
    load(count);
    __syncthreads();
    const int reached = math::min(count, used.by_warp - first);
    for (int group = (reached - 1) / kWarp * kWarp; group >= 0 && reached > 0; group -= kWarp)
      visit(reaching_warp(group, reached, batch), group, first);
  }
}

}  // namespace gsfields::cuda
