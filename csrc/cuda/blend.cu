// Blending on the GPU: a block takes one tile, a thread one pixel, from front to back. The maths of a pair is
// csrc/math/blend.h; the batches and their culling are in tile.h.
#include "kernels.h"
#include "tile.h"

namespace gsfields::cuda {
namespace {

// What a pixel holds of C channels on its way through the list.
template <class S, int C>
struct Pixel {
  S x, y, T;
  S sums[C];
  int32_t last;
  bool done;  // accepts no more Gaussians, or lies outside the image
};

template <class S, int C>
__device__ void add(Pixel<S, C>& p, const math::PixelSplat<S>& splat, const BatchValues<S, C>& values, int position) {
  const S scaled = math::scaled_exponent(splat, p.x - splat.x, p.y - splat.y);
  const S alpha = math::pair_alpha(splat, scaled, falloff(scaled)), next = p.T * (1 - alpha);
  if (p.done || alpha == 0) return;
  p.done = next <= S(math::kTransmittanceMin);
  if (p.done) return;
#pragma unroll
  for (int c = 0; c < C; ++c) p.sums[c] += alpha * p.T * values.v[c];
  p.T = next, p.last = position + 1;
}

template <class S, int C>
__device__ void store(const BlendInput<S>& in, unsigned view, int channel, const Pixel<S, C>& p, S* image,
                      S* transmittance, int32_t* last) {
  const int x = int(p.x), y = int(p.y);
  if (x >= in.width || y >= in.height) return;
  const int64_t at = (int64_t(view) * in.height + y) * in.width + x;
  const S* background = in.background ? in.background + view * in.background_stride + channel : nullptr;
#pragma unroll
  for (int c = 0; c < C; ++c)
    if (channel + c < in.channels)
      image[at * in.channels + channel + c] = p.sums[c] + (background ? p.T * background[c] : S(0));
  if (channel == 0) transmittance[at] = p.T, last[at] = p.last;
}

// The blocks of all tiles for the first C channels, then of all tiles for the next.
template <class S, int C>
__global__ void __launch_bounds__(kTilePixels, resident_blocks<S>(kBlendBlocks, C, kTilePixels))
    blend_kernel(const BlendInput<S> in, const Packed<S>* packed, unsigned tiles, S* image, S* transmittance,
                 int32_t* last) {
  using Values = BatchValues<S, C>;
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  GSF_SHARED(Values, values, [kTilePixels]);
  const Tile tile = locate(in, blockIdx.x % tiles);
  const int channel = int(blockIdx.x / tiles) * C, x = tile.x0 + tile_x(), y = tile.y0 + tile_y();
  Pixel<S, C> p = {S(x) + S(0.5), S(y) + S(0.5), 1, {}, 0, x >= in.width || y >= in.height};

  for (int first = 0; first < tile.listed; first += kTilePixels) {
    if (__syncthreads_count(p.done) == kTilePixels) break;  // all have also left the batch before
    const int count = math::min(kTilePixels, tile.listed - first);
    load_batch(in, packed, tile, first, count, splats, candidates);
    load_values(in, tile, channel, count, candidates, values);  // of the Gaussian that this thread has just loaded
    __syncthreads();
    for (int group = 0; group < count && !__all_sync(kFullWarp, p.done); group += kWarp)
#pragma unroll 1
      for (unsigned left = reaching_patch(p.x, p.y, group, count, splats, candidates); left; left &= left - 1) {
        const int k = group + __ffs(int(left)) - 1;
        add(p, splats[k], values[k], first + k);
      }
  }
  store(in, tile.view, channel, p, image, transmittance, last);
}

}  // namespace

template <class S>
cudaError_t blend(const BlendInput<S>& in, S* image, S* transmittance, int32_t* last, const Allocate& allocate,
                  cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  auto* packed = allocate_array<Packed<S>>(allocate, in.views * in.n);
  GSF_STEP(pack(in, packed, stream));
  return pick_channels<S>(in.channels, [&](auto count) {
    constexpr int C = decltype(count)::value;
    return GSF_LAUNCH((blend_kernel<S, C>), blocks_for(in.channels, C) * tiles, kTilePixels, stream, in, packed,
                      unsigned(tiles), image, transmittance, last);
  });
}

template cudaError_t blend(const BlendInput<float>&, float*, float*, int32_t*, const Allocate&, cudaStream_t);
template cudaError_t blend(const BlendInput<double>&, double*, double*, int32_t*, const Allocate&, cudaStream_t);

}  // namespace gsfields::cuda
