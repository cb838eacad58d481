// Blending on the GPU: a block takes one tile, a thread one pixel, from front to back. The maths of a pair is
// csrc/math/blend.h; the batches and their culling are in tile.h and walk.h.
#include "dispatch.h"
#include "kernels.h"
#include "walk.h"

namespace gsfields::cuda {
namespace {

// Where results go, by rows of the image.
template <class S>
struct Blended {
  void* image;  // of [C]
  S* transmittance;
  int32_t* last;
};

// Stores C channels from `channel` on, and with the first what does not depend on channels.
template <int C, class S>
__device__ void store(const BlendInput<S>& in, unsigned view, int64_t row, int channel, const S* sums, S T,
                      int32_t last, const Blended<S>& to) {
  if (row < 0) return;
  const S* background = in.background ? in.background + view * in.background_stride + channel : nullptr;
#pragma unroll
  for (int c = 0; c < C; ++c)
    if (channel + c < in.channels)
      math::store_as<S>(to.image, row * in.channels + channel + c, in.storage,
                        sums[c] + (background ? T * background[c] : S(0)));
  if (channel == 0) to.transmittance[row] = T, to.last[row] = last;
}

// The blocks of all tiles for the first C channels, then of all tiles for the next. kSampled: whether pixels may take
// more than one round; to be ready for it costs registers.
template <class S, int C, bool kSampled>
__global__ void __launch_bounds__(kTilePixels, resident_blocks<S>(kSampled ? 1 : kBlendBlocks, C, kTilePixels))
    blend_kernel(const BlendInput<S> in, const Packed<S>* packed, const Blended<S> to, unsigned tiles) {
  using Values = BatchValues<S, C>;
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  GSF_SHARED(Box<S>, boxes, [kPatches]);
  GSF_SHARED(Values, values, [kTilePixels]);
  const Batch<S> batch = {splats, candidates, boxes};
  const Tile tile = locate(in, blockIdx.x % tiles);
  const int channel = int(blockIdx.x / tiles) * C;

  for (int round = 0; round < (kSampled ? count_rounds(in, tile.index) : 1); ++round) {
    FrontPixel<S> p = start_front(in, tile, find_row(in, tile, round), boxes);
    S sums[C] = {};
    int32_t last = 0;
    front_to_back(
        in, packed, tile, batch, p, [&](int count) { load_values(in, tile, channel, count, batch, values); },
        [&](int k, int position) {
          const S weight = step_into(p, splats[k]);
          if (weight == 0) return;
#pragma unroll
          for (int c = 0; c < C; ++c) sums[c] += weight * values[k].v[c];
          last = position + 1;
        });
    store<C>(in, tile.view, find_row(in, tile, round), channel, sums, p.T, last, to);
  }
}

}  // namespace

template <class S>
cudaError_t blend(const BlendInput<S>& in, void* image, S* transmittance, int32_t* last, const Allocate& allocate,
                  cudaStream_t stream) {
  if (in.pixels) {  // no host has read their lists, which may leave rows out
    GSF_STEP(zero(static_cast<char*>(image), in.rows * in.channels * math::bytes_of(in.storage, sizeof(S)), stream));
    GSF_STEP(zero(transmittance, in.rows, stream));
    GSF_STEP(zero(last, in.rows, stream));
  }
  auto* packed = allocate_array<Packed<S>>(allocate, in.views * in.n);
  GSF_STEP(pack(in, packed, stream));
  if constexpr (sizeof(S) == sizeof(float))
    if (takes_wide(in)) return wide_blend(in, packed, image, transmittance, last, stream);

  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  const auto launch = [&](auto sampled) {
    return pick_channels<S>(in.channels, [&](auto count) {
      [[maybe_unused]] constexpr int C = decltype(count)::value;
      [[maybe_unused]] constexpr bool kSampled = decltype(sampled)::value;
      return GSF_LAUNCH((blend_kernel<S, C, kSampled>), blocks_for(in.channels, C) * tiles, kTilePixels, stream, in,
                        packed, Blended<S>{image, transmittance, last}, unsigned(tiles));
    });
  };
  return in.pixels ? launch(std::true_type()) : launch(std::false_type());
}

template cudaError_t blend(const BlendInput<float>&, void*, float*, int32_t*, const Allocate&, cudaStream_t);
template cudaError_t blend(const BlendInput<double>&, void*, double*, int32_t*, const Allocate&, cudaStream_t);

}  // namespace gsfields::cuda
