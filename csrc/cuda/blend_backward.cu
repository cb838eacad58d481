// The backward pass of the blend on the GPU: a block takes one tile, a thread one pixel, from back to front. A warp
// sums what its pixels owe to a Gaussian before it is added to memory: moments (csrc/math/blend.h), from which the
// gradients of the geometry follow at the end, and dL/dvalues.
#include "kernels.h"
#include "tile.h"

namespace gsfields::cuda {
namespace {

using math::kMoments;

// What comes from the forward pass and from the loss, and where sums go. Null where not asked for.
template <class S>
struct Backward {
  const S* transmittance;              // [B,H,W]
  const int32_t* last;                 // [B,H,W]
  const S *v_image, *v_transmittance;  // [B,H,W,C] [B,H,W]
  S* moments;                          // [B,N,kMoments]
  S* v_values;                         // as values
};

// A pixel on its way from back to front: `behind` as in math::pair_gradient(), T behind the next Gaussian.
template <class S>
struct Pixel {
  S x, y, T, behind;
  int32_t last;
  const S* v_image;  // [C]; null outside the image
};

template <class S>
__device__ Pixel<S> start_pixel(const BlendInput<S>& in, const Backward<S>& b, const Tile& tile) {
  const int x = tile.x0 + tile_x(), y = tile.y0 + tile_y();
  Pixel<S> p = {S(x) + S(0.5), S(y) + S(0.5), 1, 0, 0, nullptr};
  if (x >= in.width || y >= in.height) return p;
  const int64_t at = (int64_t(tile.view) * in.height + y) * in.width + x;
  p.T = b.transmittance[at], p.last = math::min(b.last[at], tile.listed);
  p.v_image = b.v_image + at * in.channels;
  if (!b.moments) return p;
  S v_T = b.v_transmittance[at];
  if (in.background) {
    const S* background = in.background + tile.view * in.background_stride;
    for (int64_t c = 0; c < in.channels; ++c) v_T += background[c] * p.v_image[c];
  }
  p.behind = p.T * v_T;
  return p;
}

// The largest of the values that the warps give.
__device__ inline int block_max(int value) {
  GSF_SHARED(int, of_warp, [kPatches]);
  if (lane_id() == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int warp = 0; warp < kPatches; ++warp) value = math::max(value, of_warp[warp]);
  return value;
}

// alpha of the pair if the pixel blended it, else 0.
template <class S>
__device__ S blended_alpha(const Pixel<S>& p, const math::PixelSplat<S>& splat, int position) {
  const S scaled = math::scaled_exponent(splat, p.x - splat.x, p.y - splat.y);
  const S alpha = math::pair_alpha(splat, scaled, falloff(scaled));
  return position < p.last ? alpha : S(0);
}

// Steps over a Gaussian of positive alpha: its weight, and its moments if there is room for them.
template <class S>
__device__ S step_over(Pixel<S>& p, const math::PixelSplat<S>& splat, S alpha, S s, S* moments) {
  const S inverse = reciprocal(1 - alpha);
  p.T *= inverse;
  const S weight = alpha * p.T;
  if (moments) {
    const S q = math::pair_gradient<S>(alpha, inverse, p.T, s, p.behind);
    p.behind += weight * s;
    math::pair_moments(splat, p.x - splat.x, p.y - splat.y, q, moments);
  }
  return weight;
}

// Takes the last of the Gaussians left: its number in the batch.
__device__ inline int pop_last(unsigned& left, int group) {
  const int bit = kWarp - 1 - __clz(int(left));
  left ^= 1u << bit;
  return group + bit;
}

// ---- few channels --------------------------------------------------------------------------------------------------

// All channels in registers: one sum over the warp holds the moments and dL/dvalues. channels <= C.
template <class S, int C, bool kGeometry>
__global__ void __launch_bounds__(kTilePixels, resident_blocks<S>(kBlendBackwardBlocks, C, kTilePixels))
    blend_backward_kernel(const BlendInput<S> in, const Packed<S>* packed, const Backward<S> b) {
  using Values = BatchValues<S, C>;
  constexpr int kSums = (kGeometry ? kMoments : 0) + C, kFirstValue = kSums - C;
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  GSF_SHARED(Values, values, [kTilePixels]);
  const Tile tile = locate(in, blockIdx.x);
  Pixel<S> p = start_pixel(in, b, tile);
  S v_image[C];
#pragma unroll
  for (int c = 0; c < C; ++c) v_image[c] = p.v_image && c < in.channels ? p.v_image[c] : S(0);
  const int warp_last = warp_max(p.last), used = block_max(warp_last);

  // The sum that this lane receives, and where it goes: sums[id * stride].
  const int index = scattered_index<kSums>(lane_id());
  S* sums = nullptr;
  int stride = kMoments;
  if (kGeometry && index >= 0 && index < kFirstValue)
    sums = b.moments + tile.view * in.n * kMoments + index;
  else if (b.v_values && index >= kFirstValue && index - kFirstValue < in.channels)
    sums = b.v_values + tile.view * in.values_stride + (index - kFirstValue), stride = int(in.channels);

  for (int first = (used - 1) / kTilePixels * kTilePixels; first >= 0 && used > 0; first -= kTilePixels) {
    const int count = math::min(kTilePixels, used - first);
    __syncthreads();  // all have left the batch before
    load_batch(in, packed, tile, first, count, splats, candidates);
    if (kGeometry) load_values(in, tile, 0, count, candidates, values);
    __syncthreads();
    const int reached = math::min(count, warp_last - first);  // of the batch, by this warp
    for (int group = (reached - 1) / kWarp * kWarp; group >= 0 && reached > 0; group -= kWarp)
#pragma unroll 1
      for (unsigned left = reaching_patch(p.x, p.y, group, reached, splats, candidates); left;) {
        const int k = pop_last(left, group);
        const S alpha = blended_alpha(p, splats[k], first + k);
        if (!__any_sync(kFullWarp, alpha > 0)) continue;
        S owed[kSums] = {};
        if (alpha > 0) {
          S s = 0;
#pragma unroll
          for (int c = 0; c < C && kGeometry; ++c) s += values[k].v[c] * v_image[c];
          const S weight = step_over(p, splats[k], alpha, s, kGeometry ? owed : nullptr);
#pragma unroll
          for (int c = 0; c < C; ++c) owed[kFirstValue + c] = weight * v_image[c];
        }
        const S sum = reduce_scatter(owed);
        if (sums) atomicAdd(sums + int64_t(candidates[k].id) * stride, sum);
      }
  }
}

// ---- many channels -------------------------------------------------------------------------------------------------

// Channels [channel, channel + C) of dL/dpixel, zeros beyond the last and outside the image.
template <int C, class S>
__device__ void load_v_image(const BlendInput<S>& in, const Pixel<S>& p, int channel, S* v_image) {
#pragma unroll
  for (int c = 0; c < C; ++c) v_image[c] = p.v_image && channel + c < in.channels ? p.v_image[channel + c] : S(0);
}

// Any number of channels: a warp takes some Gaussians together, walks once through the channels for their s and once
// more for dL/dvalues.
template <class S, bool kGeometry>
__global__ void __launch_bounds__(kTilePixels, 1)
    blend_backward_many_kernel(const BlendInput<S> in, const Packed<S>* packed, const Backward<S> b) {
  constexpr int G = kManyGaussians, C = kManyChannels;
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  const Tile tile = locate(in, blockIdx.x);
  const int channels = int(in.channels);
  Pixel<S> p = start_pixel(in, b, tile);
  const int warp_last = warp_max(p.last), used = block_max(warp_last);
  const int moment = scattered_index<kMoments>(lane_id()), value = scattered_index<C>(lane_id());
  S* moments = kGeometry ? b.moments + tile.view * in.n * kMoments : nullptr;
  S* v_values = b.v_values ? b.v_values + tile.view * in.values_stride : nullptr;
  const S* values = in.values + tile.view * in.values_stride;

  for (int first = (used - 1) / kTilePixels * kTilePixels; first >= 0 && used > 0; first -= kTilePixels) {
    const int count = math::min(kTilePixels, used - first);
    __syncthreads();
    load_batch(in, packed, tile, first, count, splats, candidates);
    __syncthreads();
    const int reached = math::min(count, warp_last - first);
    for (int group = (reached - 1) / kWarp * kWarp; group >= 0 && reached > 0; group -= kWarp)
#pragma unroll 1
      for (unsigned left = reaching_patch(p.x, p.y, group, reached, splats, candidates); left;) {
        int taken[G];  // numbers in the batch, -1 where none was left
        S alpha[G], s[G], v_image[C];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          taken[g] = -1, alpha[g] = 0, s[g] = 0;
          while (left && taken[g] < 0) {
            const int k = pop_last(left, group);
            alpha[g] = blended_alpha(p, splats[k], first + k);
            if (__any_sync(kFullWarp, alpha[g] > 0)) taken[g] = k;
          }
        }
        for (int channel = 0; channel < channels && kGeometry; channel += C) {
          load_v_image<C>(in, p, channel, v_image);
#pragma unroll
          for (int g = 0; g < G; ++g) {
            if (taken[g] < 0) continue;
            const S* of_gaussian = values + int64_t(candidates[taken[g]].id) * channels + channel;
#pragma unroll
            for (int c = 0; c < C; ++c)
              if (channel + c < channels && alpha[g] > 0) s[g] += of_gaussian[c] * v_image[c];
          }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
          if (taken[g] < 0) continue;
          S owed[kMoments] = {};
          // From here on alpha[g] is the weight.
          if (alpha[g] > 0) alpha[g] = step_over(p, splats[taken[g]], alpha[g], s[g], kGeometry ? owed : nullptr);
          if (!kGeometry) continue;
          const S sum = reduce_scatter(owed);
          if (moment >= 0) atomicAdd(moments + int64_t(candidates[taken[g]].id) * kMoments + moment, sum);
        }
        for (int channel = 0; channel < channels && v_values; channel += C) {
          load_v_image<C>(in, p, channel, v_image);
#pragma unroll
          for (int g = 0; g < G; ++g) {
            if (taken[g] < 0) continue;
            S owed[C];
#pragma unroll
            for (int c = 0; c < C; ++c) owed[c] = alpha[g] > 0 ? alpha[g] * v_image[c] : S(0);
            const S sum = reduce_scatter(owed);
            if (value >= 0 && channel + value < channels)
              atomicAdd(v_values + int64_t(candidates[taken[g]].id) * channels + channel + value, sum);
          }
        }
      }
  }
}

// ---- from moments to gradients -------------------------------------------------------------------------------------

template <class S>
__global__ void __launch_bounds__(kPackBlock)
    geometry_kernel(const BlendInput<S> in, const S* moments, const BlendGrads<S> grads) {
  const int64_t i = int64_t(blockIdx.x) * kPackBlock + threadIdx.x;
  if (i >= in.views * in.n) return;
  math::gradients_from_moments(moments + i * kMoments, in.conics + 3 * i, in.opacities[i], grads.v_means2d + 2 * i,
                               grads.v_conics + 3 * i, grads.v_opacities + i,
                               grads.absgrad ? grads.absgrad + 2 * i : nullptr);
}

template <class S, bool kGeometry>
cudaError_t launch(const BlendInput<S>& in, const Packed<S>* packed, const Backward<S>& b, cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  if (in.channels > ChannelCounts<S>::most)
    return GSF_LAUNCH((blend_backward_many_kernel<S, kGeometry>), tiles, kTilePixels, stream, in, packed, b);
  return pick_channels<S>(in.channels, [&](auto count) {
    [[maybe_unused]] constexpr int C = decltype(count)::value;
    return GSF_LAUNCH((blend_backward_kernel<S, C, kGeometry>), tiles, kTilePixels, stream, in, packed, b);
  });
}

}  // namespace

template <class S>
cudaError_t blend_backward(const BlendInput<S>& in, const S* transmittance, const int32_t* last,
                           const BlendGrads<S>& grads, const Allocate& allocate, cudaStream_t stream) {
  const int64_t splats = in.views * in.n, rows = in.values_stride ? splats : in.n;
  Backward<S> b = {transmittance, last, grads.v_image, grads.v_transmittance, nullptr, grads.v_values};
  if (b.v_values) GSF_STEP(zero(b.v_values, rows * in.channels, stream));
  if (grads.v_means2d) {
    b.moments = allocate_array<S>(allocate, splats * kMoments);
    GSF_STEP(zero(b.moments, splats * kMoments, stream));
  }
  auto* packed = allocate_array<Packed<S>>(allocate, splats);
  GSF_STEP(pack(in, packed, stream));
  GSF_STEP(b.moments ? launch<S, true>(in, packed, b, stream) : launch<S, false>(in, packed, b, stream));
  if (!b.moments) return cudaSuccess;
  return GSF_LAUNCH(geometry_kernel, blocks_for(splats, kPackBlock), kPackBlock, stream, in, b.moments, grads);
}

template cudaError_t blend_backward(const BlendInput<float>&, const float*, const int32_t*, const BlendGrads<float>&,
                                    const Allocate&, cudaStream_t);
template cudaError_t blend_backward(const BlendInput<double>&, const double*, const int32_t*, const BlendGrads<double>&,
                                    const Allocate&, cudaStream_t);

}  // namespace gsfields::cuda
