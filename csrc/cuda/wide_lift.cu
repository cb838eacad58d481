// Lifting many channels: sums = Wᵀ G over the pixels of each patch, added to the rows of the Gaussians. The scheme is
// in wide.h.
#include "wide.h"

namespace gsfields::cuda {
namespace {

using namespace wide;

constexpr int kUnits = kPixels / 16;       // of contracted pixels
constexpr int kRowOfPairs = kPixels + 16;  // fours of pixels of two Gaussians: 32 different banks
using Survivors = Queue<256>;
using Weights = Pairs<3, kRowOfPairs>;

// The image in the patch and the warp's channels.
template <Precision P>
using Image = Held<P>[kUnits][kOperands];

// Sums of a group by the warp's channels: Gaussians g and g + 8.
using Sums = float[kOperands][4];

// Of each 16 pixels a lane contracts four in a row.
__device__ inline int contracted(int unit) { return unit * 16 + lane_id() % 4 * 4; }

template <Precision P>
__device__ void load_image(const Rows& from, const Patch& patch, int channel, Image<P>& image) {
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    int64_t rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = patch.row[contracted(unit) + i];
    Four fours[4][2];
    load_fours(from, rows, channel + column_channel(), 32, fours);
#pragma unroll
    for (int n = 0; n < kOperands; ++n) image[unit][n].hold(column_of(fours, n));
  }
}

__device__ inline Four four_of(const float* x) { return *reinterpret_cast<const Four*>(x); }

// Which of Gaussians g and g + 8 has weight in the patch.
struct Weighted {
  bool upper, lower;
};

template <Precision P>
__device__ Weighted sum_group(const Weights::Numbers& weights, const Image<P>& image, int places, int channels,
                              Sums& sums) {
  const int g = lane_id() / 4;
  bool upper_any = false, lower_any = false;
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    if (16 * unit >= places) break;
    const Four upper = four_of(&weights[g][contracted(unit)]), lower = four_of(&weights[g + 8][contracted(unit)]);
#pragma unroll
    for (int i = 0; i < 4; ++i) upper_any |= upper.v[i] != 0, lower_any |= lower.v[i] != 0;
    const Left<P> left = make_left<P>(upper, lower);
#pragma unroll
    for (int n = 0; n < kOperands; ++n)
      if (n / 4 * 32 < channels) multiply_add(sums[n], left, image[unit][n].get());
  }
  const unsigned of_upper = __ballot_sync(kFullWarp, upper_any), of_lower = __ballot_sync(kFullWarp, lower_any);
  return {(of_upper >> 4 * g & 15u) != 0, (of_lower >> 4 * g & 15u) != 0};
}

// Sums of the weights alone, in float: a lane takes a Gaussian.
__device__ inline void add_total(const Weights::Numbers& weights, float* total) {
  float sum = 0;
  for (int p = 0; p < kPixels; p += 4) {
    const Four w = four_of(&weights[lane_id()][p]);
    sum += w.v[0] + w.v[1] + (w.v[2] + w.v[3]);
  }
  if (sum != 0) atomicAdd(total, sum);
}

template <Precision P>
__global__ void __launch_bounds__(kMostThreads, 1)
    wide_lift_kernel(const BlendInput<float> in, const Packed<float>* packed, const LiftArgs<float> a,
                     const WideSums to, unsigned tiles) {
  if (!kCallable) return;
  GSF_SHARED(Patch, patch, );
  GSF_SHARED(Survivors, survivors, );
  GSF_SHARED(Weights, stages, );
  GSF_SHARED(bool, weighted, [3]);
  GSF_SHARED(float, factors, [kPixels]);
  const int blocks = blocks_of_tile(to);
  const unsigned block = blockIdx.x / unsigned(blocks);
  const Tile tile = locate(in, block % tiles);
  if (!wants(to, tile)) return;
  const int64_t before = int64_t(block / tiles) * kMostChannels + warp_id() * kWarpChannels;
  const int column = int(before), columns = int(math::min<int64_t>(kWarpChannels, to.channels - before));
  const int channel = int(to.first_channel) + column;
  const Rows from = make_rows(a.image, in.storage, in.channels, to.first_channel, channel + columns);
  const bool aligned = takes_fours(to.sums, sizeof(float), to.stride, 0), per_view = in.values_stride != 0;
  const bool adds_total = to.total && block < tiles && warp_id() == warps() - 1;

  for (int number = int(blockIdx.x) % blocks; number < count_patches(in, tile.index); number += blocks) {
    const int places = fill_patch(in, tile, number, patch);
    Image<P> image;
    load_image<P>(from, patch, channel, image);
    if (a.factors)  // which warp 0 reads after barriers
      for (int p = int(threadIdx.x); p < kPixels; p += int(blockDim.x))
        factors[p] = patch.row[p] < 0 ? 0.0f : a.factors[patch.row[p]];
    Walk<Survivors> walk{in, packed, patch, survivors, 0, tile.listed, 1};

    const auto product = [&](const Group& group, const Weights::Numbers& weights, int) {
      Sums sums = {};
      const Weighted found = sum_group<P>(weights, image, places, columns, sums);
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        if (!(lower ? found.lower : found.upper)) continue;
        const int64_t row =
            sum_row(in, to, patch.tile, survivors.at(group.first + lane_id() / 4 + 8 * lower), per_view);
        if (row < 0) continue;
#pragma unroll
        for (int four = 0; four < 4; ++four) {
          const int at = product_channel(four);
          if (at < columns)
            add_four(to.sums + row * to.stride + column + at, aligned, columns - at, product_four(sums, four, lower));
        }
      }
      if (!adds_total || lane_id() >= group.count) return;
      const int64_t row = sum_row(in, to, patch.tile, survivors.at(group.first + lane_id()), per_view);
      if (row >= 0) add_total(weights, to.total + row);
    };
    const auto nothing = [](const Group&, bool) { return 0; };
    front_to_back(walk, patch, stages, weighted, a.factors ? factors : nullptr, nothing, product);
  }
}

}  // namespace

cudaError_t wide_lift(const BlendInput<float>& in, const Packed<float>* packed, const LiftArgs<float>& a,
                      const WideSums& to, cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  return pick_precision(in.precision, [&](auto precision) {
    return GSF_LAUNCH(wide_lift_kernel<decltype(precision)::value>,
                      blocks_for(to.channels, kMostChannels) * tiles * blocks_of_tile(to),
                      warps_for(to.channels) * kWarp, stream, in, packed, a, to, unsigned(tiles));
  });
}

}  // namespace gsfields::cuda
