// The blend of many channels: out = W V, patch by patch. The scheme is in wide.h.
#include "wide.h"

namespace gsfields::cuda {
namespace {

using namespace wide;

constexpr int kRowOfPairs = kPixels + 8;  // pixel g of Gaussians t, t + 4, ...: 32 different banks
using Survivors = Queue<256>;
using Weights = Pairs<3, kRowOfPairs>;

// Values of four Gaussians: of 64 channels for the four that a lane contracts.
struct Fetched {
  Four rows[4][2];
};

// Sums of all pixels of the patch by the warp's channels: 16 pixels by 8 channels each.
using Sums = float[kPixels / 16][kOperands][4];

// Gaussians t, t + 4, ... of the group are those that this lane contracts, on both sides of the product.
__device__ inline int contracted(int i) { return lane_id() % 4 + 4 * i; }

template <Precision P>
__device__ Left<P> weights_of(const Weights::Numbers& weights, int pixels) {
  Four upper, lower;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* row = weights[contracted(i)] + pixels + lane_id() / 4;
    upper.v[i] = row[0], lower.v[i] = row[8];
  }
  return make_left<P>(upper, lower);
}

// Tensor cores do not round sums but cut them off, always towards zero: in float, a group is summed from zero and then
// added with rounding.
template <Precision P>
__device__ void add_product(float (&sum)[4], const Left<P>& weights, const Right<P>& values) {
  if constexpr (P != Precision::kFp32) {
    multiply_add(sum, weights, values);
  } else {
    float of_group[4] = {};
    multiply_add(of_group, weights, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += of_group[i];
  }
}

// Rows of 16 pixels after each other, as many at a time as there are registers for: each time the values are converted.
template <Precision P>
constexpr int kRowsAtATime = P == Precision::kFp32 ? 1 : 2;

template <Precision P>
__device__ void add_group(Sums& sums, const Weights::Numbers& weights, const Fetched& values, int places,
                          int channels) {
#pragma unroll
  for (int first = 0; first < kPixels / 16; first += kRowsAtATime<P>) {
    if (16 * first >= places) break;
    Left<P> left[kRowsAtATime<P>];
#pragma unroll
    for (int i = 0; i < kRowsAtATime<P>; ++i) left[i] = weights_of<P>(weights, 16 * (first + i));
#pragma unroll
    for (int n = 0; n < kOperands; ++n) {
      if (n / 4 * 32 >= channels) break;
      const Right<P> right = make_right<P>(column_of(values.rows, n));
#pragma unroll
      for (int i = 0; i < kRowsAtATime<P>; ++i) add_product<P>(sums[first + i][n], left[i], right);
    }
  }
}

// Channels of a warp.
struct Window {
  int first, end;
};

__device__ inline Four background_four(const BlendInput<float>& in, unsigned view, int channel, int left) {
  Four x = {};
  if (!in.background) return x;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) x.v[i] = in.background[view * in.background_stride + channel + i];
  return x;
}

__device__ inline void store_image(const BlendInput<float>& in, const Patch& patch, const Window& window,
                                   const Sums& sums, void* image) {
  const bool aligned = takes_fours(image, math::bytes_of(in.storage, 4), in.channels, window.first);
#pragma unroll
  for (int four = 0; four < 4; ++four) {
    const int channel = window.first + product_channel(four), left = window.end - channel;
    const Four background = background_four(in, patch.tile.view, channel, left);
#pragma unroll
    for (int half = 0; half < kPixels / 8; ++half) {
      const int p = half * 8 + lane_id() / 4;
      if (patch.row[p] < 0 || left <= 0) continue;
      Four x = product_four(sums[half / 2], four, half % 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) x.v[i] += patch.T[p] * background.v[i];
      store_four(image, in.storage, aligned, patch.row[p] * in.channels + channel, left, x);
    }
  }
}

// The four blocks of each tile for the first window of channels, then for the next.
template <Precision P>
__global__ void __launch_bounds__(kMostThreads)
    wide_blend_kernel(const BlendInput<float> in, const Packed<float>* packed, unsigned tiles, void* image,
                      float* transmittance, int32_t* last) {
  if (!kCallable) return;
  GSF_SHARED(Patch, patch, );
  GSF_SHARED(Survivors, survivors, );
  GSF_SHARED(Weights, stages, );
  GSF_SHARED(bool, weighted, [3]);
  const unsigned block = blockIdx.x / kPatchesOfTile;
  const Tile tile = locate(in, block % tiles);
  const int64_t channels_before = int64_t(block / tiles) * kMostChannels + warp_id() * kWarpChannels;
  const Window window = {int(channels_before), int(math::min(channels_before + kWarpChannels, in.channels))};
  const Rows values = make_rows(in.values, in.storage, in.channels, 0, window.end);

  for (int number = int(blockIdx.x) % kPatchesOfTile; number < count_patches(in, tile.index);
       number += kPatchesOfTile) {
    const int places = fill_patch(in, tile, number, patch);
    Walk<Survivors> walk{in, packed, patch, survivors, 0, tile.listed, 1};
    Sums sums = {};
    const auto fetch = [&](const Group& group, bool wanted) {
      Fetched fetched = {};
      if (!wanted) return fetched;
      int64_t rows[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        rows[i] = contracted(i) >= group.count ? -1
                                               : (in.values_stride ? int64_t(patch.tile.view) * in.n : 0) +
                                                     survivors.at(group.first + contracted(i)).id;
      load_fours(values, rows, window.first + column_channel(), 32, fetched.rows);
      return fetched;
    };
    const auto product = [&](const Group&, const Weights::Numbers& weights, const Fetched& fetched) {
      add_group<P>(sums, weights, fetched, places, window.end - window.first);
    };
    front_to_back(walk, patch, stages, weighted, nullptr, fetch, product);
    store_image(in, patch, window, sums, image);
    for (int p = int(threadIdx.x); p < kPixels && block < tiles; p += int(blockDim.x))
      if (patch.row[p] >= 0) transmittance[patch.row[p]] = patch.T[p], last[patch.row[p]] = patch.last[p];
  }
}

}  // namespace

bool wide_available() {
#if defined(GSF_EMULATOR)
  return true;
#else
  cudaFuncAttributes code{};  // not of the device, which could run code that was made for older ones
  return cudaFuncGetAttributes(&code, wide_blend_kernel<Precision::kFp32>) == cudaSuccess && code.ptxVersion >= 80;
#endif
}

cudaError_t wide_blend(const BlendInput<float>& in, const Packed<float>* packed, void* image, float* transmittance,
                       int32_t* last, cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  return pick_precision(in.precision, [&](auto precision) {
    return GSF_LAUNCH(wide_blend_kernel<decltype(precision)::value>,
                      blocks_for(in.channels, kMostChannels) * tiles * kPatchesOfTile, warps_for(in.channels) * kWarp,
                      stream, in, packed, unsigned(tiles), image, transmittance, last);
  });
}

}  // namespace gsfields::cuda
