// The backward pass of the blend on the GPU: a block takes one tile, a thread one pixel, from back to front. A warp
// sums what its pixels owe to a Gaussian before it is added to memory: moments (csrc/math/blend.h), from which the
// gradients of the geometry follow at the end, and with few channels also dL/dvalues. Else these are a lift of
// dL/dimage.
#include "dispatch.h"
#include "kernels.h"
#include "sums.h"
#include "walk.h"

namespace gsfields::cuda {
namespace {

using math::kMoments;

// What comes from the forward pass and from the loss, by rows of the image, and where sums go.
template <class S>
struct Backward {
  const S* transmittance;
  const int32_t* last;
  const void* v_image;  // rows of [C]
  const S* v_transmittance;
  Rows<S> moments;
  Records<S> records;  // of the moments; then v_values must be null
  S* v_values;         // as values, or null
};

// A pixel on its way from back to front: `behind` as in math::pair_gradient(), T behind the next Gaussian.
template <class S>
struct BackPixel {
  S x, y, T, behind;
  int32_t last;
};

template <class S>
__device__ S load_v_image(const BlendInput<S>& in, const Backward<S>& b, int64_t row, int64_t channel) {
  if (row < 0 || channel >= in.channels) return 0;
  return math::load_as<S>(b.v_image, row * in.channels + channel, in.storage);
}

template <class S>
__device__ BackPixel<S> start_back(const BlendInput<S>& in, const Backward<S>& b, const Tile& tile, int64_t row,
                                   Box<S>* boxes) {
  const Centre<S> centre = find_pixel(in, tile, row, boxes);
  BackPixel<S> p = {centre.x, centre.y, 1, 0, 0};
  if (row < 0) return p;
  p.T = b.transmittance[row], p.last = math::min(b.last[row], tile.listed);
  S v_T = b.v_transmittance[row];
  if (in.background) {
    const S* background = in.background + tile.view * in.background_stride;
    for (int64_t c = 0; c < in.channels; ++c) v_T += background[c] * load_v_image(in, b, row, c);
  }
  p.behind = p.T * v_T;
  return p;
}

// alpha of the pair if the pixel blended it, else 0.
template <class S>
__device__ S blended_alpha(const BackPixel<S>& p, const math::PixelSplat<S>& splat, int position) {
  const S scaled = math::scaled_exponent(splat, p.x - splat.x, p.y - splat.y);
  const S alpha = math::pair_alpha(splat, scaled, falloff(scaled));
  return position < p.last ? alpha : S(0);
}

// Steps over a Gaussian of positive alpha: its moments and its weight.
template <class S>
__device__ S step_over(BackPixel<S>& p, const math::PixelSplat<S>& splat, S alpha, S s, S* moments) {
  const S inverse = reciprocal(1 - alpha);
  p.T *= inverse;
  const S weight = alpha * p.T, q = math::pair_gradient<S>(alpha, inverse, p.T, s, p.behind);
  p.behind += weight * s;
  math::pair_moments(splat, p.x - splat.x, p.y - splat.y, q, moments);
  return weight;
}

// ---- few channels --------------------------------------------------------------------------------------------------

// All channels in registers: one sum over the warp holds the moments and dL/dvalues. channels <= C.
template <class S, int C>
__global__ void __launch_bounds__(kTilePixels, resident_blocks<S>(kBlendBackwardBlocks, C, kTilePixels))
    blend_backward_kernel(const BlendInput<S> in, const Packed<S>* packed, const Backward<S> b) {
  using Values = BatchValues<S, C>;
  constexpr int kSums = kMoments + C;
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  GSF_SHARED(Box<S>, boxes, [kPatches]);
  GSF_SHARED(Values, values, [kTilePixels]);
  const Batch<S> batch = {splats, candidates, boxes};
  const Tile tile = locate(in, blockIdx.x);
  if (!wants(b.records, tile)) return;

  // The sum that this lane receives, and where it goes: sums[id * stride].
  const int index = scattered_index<kSums>(lane_id());
  S* sums = nullptr;
  int stride = kMoments;
  if (index >= 0 && index < kMoments)
    sums = b.moments.sums + tile.view * in.n * kMoments + index;
  else if (b.v_values && index >= kMoments && index - kMoments < in.channels)
    sums = b.v_values + tile.view * in.values_stride + (index - kMoments), stride = int(in.channels);

  for (int round = 0; round < count_rounds(in, tile.index); ++round) {
    const int64_t row = find_row(in, tile, round);
    BackPixel<S> p = start_back(in, b, tile, row, boxes);
    S v_image[C];
#pragma unroll
    for (int c = 0; c < C; ++c) v_image[c] = load_v_image(in, b, row, c);
    const auto visit = [&](unsigned left, int group, int first) {
#pragma unroll 1
      while (left) {
        const int k = pop_last(left, group);
        const S alpha = blended_alpha(p, splats[k], first + k);
        if (!__any_sync(kFullWarp, alpha > 0)) continue;
        S owed[kSums] = {};
        if (alpha > 0) {
          S s = 0;
#pragma unroll
          for (int c = 0; c < C; ++c) s += values[k].v[c] * v_image[c];
          const S weight = step_over(p, splats[k], alpha, s, owed);
#pragma unroll
          for (int c = 0; c < C; ++c) owed[kMoments + c] = weight * v_image[c];
        }
        const S sum = reduce_scatter(owed);
        if (!sums) continue;
        if (b.records.sums)
          add_to_record(b.records, tile, first + k, index, sum);
        else
          atomicAdd(sums + int64_t(candidates[k].id) * stride, sum);
      }
    };
    back_to_front(
        in, packed, tile, batch, find_used(p.last), [&](int count) { load_values(in, tile, 0, count, batch, values); },
        visit);
  }
}

// ---- many channels -------------------------------------------------------------------------------------------------

// The moments for any number of channels: a warp takes some Gaussians together and walks through the channels for
// their s.
template <class S>
__global__ void __launch_bounds__(kTilePixels, 1)
    moments_kernel(const BlendInput<S> in, const Packed<S>* packed, const Backward<S> b) {
  constexpr int G = kManyGaussians, C = kManyChannels;
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  GSF_SHARED(Box<S>, boxes, [kPatches]);
  const Batch<S> batch = {splats, candidates, boxes};
  const Tile tile = locate(in, blockIdx.x);
  if (!wants(b.records, tile)) return;
  const int channels = int(in.channels), moment = scattered_index<kMoments>(lane_id());
  S* moments = b.moments.sums + tile.view * in.n * kMoments + moment;

  for (int round = 0; round < count_rounds(in, tile.index); ++round) {
    const int64_t row = find_row(in, tile, round);
    BackPixel<S> p = start_back(in, b, tile, row, boxes);
    const auto visit = [&](unsigned left, int group, int first) {
#pragma unroll 1
      while (left) {
        int taken[G];  // places in the batch, -1 where none was left
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
        for (int channel = 0; channel < channels; channel += C) {
#pragma unroll
          for (int c = 0; c < C; ++c) v_image[c] = load_v_image(in, b, row, channel + c);
#pragma unroll
          for (int g = 0; g < G; ++g) {
            if (taken[g] < 0) continue;
            const int64_t from = tile.view * in.values_stride + int64_t(candidates[taken[g]].id) * channels + channel;
#pragma unroll
            for (int c = 0; c < C; ++c)
              if (channel + c < channels && alpha[g] > 0)
                s[g] += math::load_as<S>(in.values, from + c, in.storage) * v_image[c];
          }
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
          if (taken[g] < 0) continue;
          S owed[kMoments] = {};
          if (alpha[g] > 0) step_over(p, splats[taken[g]], alpha[g], s[g], owed);
          const S sum = reduce_scatter(owed);
          if (moment < 0) continue;
          if (b.records.sums)
            add_to_record(b.records, tile, first + taken[g], moment, sum);
          else
            atomicAdd(moments + int64_t(candidates[taken[g]].id) * kMoments, sum);
        }
      }
    };
    back_to_front(in, packed, tile, batch, find_used(p.last), [](int) {}, visit);
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

// The moments, and dL/dvalues too where b.v_values has room for them.
template <class S>
cudaError_t add_moments(const BlendInput<S>& in, const Packed<S>* packed, const Backward<S>& b, cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  if (in.channels > ChannelCounts<S>::most)
    return GSF_LAUNCH((moments_kernel<S>), tiles, kTilePixels, stream, in, packed, b);
  return pick_channels<S>(in.channels, [&](auto count) {
    [[maybe_unused]] constexpr int C = decltype(count)::value;
    return GSF_LAUNCH((blend_backward_kernel<S, C>), tiles, kTilePixels, stream, in, packed, b);
  });
}

cudaError_t add_moments_wide(const BlendInput<float>& in, const Packed<float>* packed, const Backward<float>& b,
                             cudaStream_t stream) {
  const WideUpstream upstream = {b.transmittance, b.last, b.v_image, b.v_transmittance};
  const Records<float>& r = b.records;
  return wide_geometry(
      in, packed, upstream,
      {r.sums ? r.sums : b.moments.sums, nullptr, kMoments, 0, in.channels, r.sums != nullptr, r.first_pair, r.pairs},
      stream);
}

// b.moments and b.v_values are zeros.
template <class S>
cudaError_t sum_moments(const BlendInput<S>& in, const Packed<S>* packed, Backward<S> b, bool deterministic,
                        const Allocate& allocate, cudaStream_t stream) {
  const bool wide = takes_wide(in);
  const auto add = [&](const Records<S>& records, int64_t) {
    b.records = records;
    if constexpr (sizeof(S) == sizeof(float))
      if (wide) return add_moments_wide(in, packed, b, stream);
    return add_moments(in, packed, b, stream);
  };
  if (!deterministic) return add({}, 0);
  return sum_in_order<S>(in, b.moments, {wide ? 1 : kPatches, kMoments}, add, allocate, stream);
}

}  // namespace

template <class S>
cudaError_t blend_backward(const BlendInput<S>& in, const S* transmittance, const int32_t* last,
                           const BlendGrads<S>& grads, const Allocate& allocate, cudaStream_t stream) {
  const int64_t splats = in.views * in.n;
  const bool geometry = grads.v_means2d;
  const bool together =
      geometry && grads.v_values && in.channels <= ChannelCounts<S>::most && !takes_wide(in) && !grads.deterministic;
  auto* packed = allocate_array<Packed<S>>(allocate, splats);
  GSF_STEP(pack(in, packed, stream));
  if (geometry) {
    auto* moments = allocate_array<S>(allocate, splats * kMoments);
    GSF_STEP(zero(moments, splats * kMoments, stream));
    if (together) GSF_STEP(zero(grads.v_values, (in.values_stride ? splats : in.n) * in.channels, stream));
    const Backward<S> b = {transmittance,
                           last,
                           grads.v_image,
                           grads.v_transmittance,
                           {moments, nullptr, kMoments, true},
                           {},
                           together ? grads.v_values : nullptr};
    GSF_STEP(sum_moments(in, packed, b, grads.deterministic, allocate, stream));
    GSF_STEP(GSF_LAUNCH(geometry_kernel, blocks_for(splats, kPackBlock), kPackBlock, stream, in, moments, grads));
  }
  if (!grads.v_values || together) return cudaSuccess;
  const LiftArgs<S> to_values = {grads.v_image, nullptr, grads.v_values, nullptr, grads.deterministic};
  return lift_packed(in, packed, to_values, allocate, stream);
}

template cudaError_t blend_backward(const BlendInput<float>&, const float*, const int32_t*, const BlendGrads<float>&,
                                    const Allocate&, cudaStream_t);
template cudaError_t blend_backward(const BlendInput<double>&, const double*, const int32_t*, const BlendGrads<double>&,
                                    const Allocate&, cudaStream_t);

}  // namespace gsfields::cuda
