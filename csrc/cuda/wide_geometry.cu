// Moments (csrc/math/blend.h) of many channels: what the loss asks of a pair, s = <values, dL/dpixel>, is S = V Gᵀ over
// the channels; then the pixels walk from back to front without any vector of channels. The scheme is in wide.h; here a
// group goes through four stages, two of successive groups at work at once between two barriers:
//   evaluate(), and the product: S[16][64] of each warp's channels        group g
//   step_back, warp 0: with S summed over the warps, alpha becomes dL/dσ  group g - 1
//   sum over the warps, all threads                                       group g
//   add_moments, all warps, some Gaussians each                           group g - 1
#include "wide.h"

namespace gsfields::cuda {
namespace {

using namespace wide;
using math::kMoments;

constexpr int kUnits = kWarpChannels / 16;  // of contracted channels
constexpr int kColumns = kPixels / 8;       // right operands, eight pixels each
using Survivors = Queue<64>;
using Alphas = Pairs<2, kPixels>;

// dL/dpixel in the patch and the warp's channels.
template <Precision P>
using Image = Held<P>[kColumns][kUnits];

// S of one warp as it lies in registers, 8 pixels by 16 Gaussians in each row; pixels are spread over the banks.
struct Scores {
  Four fours[kColumns * kWarp];

  static __device__ int slot(int column, int lane) { return column * kWarp + (lane ^ column % 2 * 4); }
  __device__ float at(int k, int pixel) const {
    return fours[slot(pixel / 8, k % 8 * 4 + pixel % 8 / 2)].v[k / 8 * 2 + pixel % 2];
  }
};

// Of each 16 channels a lane contracts four in a row.
__device__ inline int contracted() { return lane_id() % 4 * 4; }

template <Precision P>
__device__ void load_image(const Rows& from, const Patch& patch, int channel, Image<P>& image) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    const int64_t row[1] = {patch.row[8 * n + lane_id() / 4]};
    Four fours[1][kUnits];
    load_fours(from, row, channel + contracted(), 16, fours);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) image[n][unit].hold(fours[0][unit]);
  }
}

// <background, dL/dpixel> of the pixel in this row, the same for all four lanes that call for it.
__device__ inline float background_score(const BlendInput<float>& in, unsigned view, int64_t row, const Rows& image) {
  if (!in.background) return 0;
  const Rows background =
      make_rows(in.background + view * in.background_stride, math::Storage::kFull, in.channels, 0, int(in.channels));
  const int64_t row_of_image[1] = {row}, first_row[1] = {0};
  float sum = 0;
  for (int channel = 0; channel < in.channels; channel += 16) {
    Four x[1][1], b[1][1];
    load_fours(image, row_of_image, channel + contracted(), 16, x);
    load_fours(background, first_row, channel + contracted(), 16, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += x[0][0].v[i] * b[0][0].v[i];
  }
  sum += __shfl_xor_sync(kFullWarp, sum, 1);
  return sum + __shfl_xor_sync(kFullWarp, sum, 2);
}

// Takes the pixels to the end of what they blended, and returns how much of the list that is: `behind` as in
// math::pair_gradient().
__device__ inline int start_at_end(const BlendInput<float>& in, const WideUpstream& upstream, const Rows& image,
                                   Patch& patch, float* behind) {
  for (int octet = warp_id(); octet < kPixels / 8; octet += warps()) {
    const int p = octet * 8 + lane_id() / 4;
    const int64_t row = patch.row[p];
    const float score = background_score(in, patch.tile.view, row, image);
    if (row < 0 || lane_id() % 4 != 0) continue;
    patch.T[p] = upstream.transmittance[row];
    patch.last[p] = math::min(upstream.last[row], patch.tile.listed);
    behind[p] = patch.T[p] * (upstream.v_transmittance[row] + score);
  }
  __syncthreads();
  int used = 0;
  for (int p = 0; p < kPixels; ++p) used = math::max(used, patch.last[p]);
  return used;
}

// Of Gaussians g and g + 8 of the group: their rows of values.
struct GroupRows {
  int64_t of[2];
};

__device__ inline GroupRows value_rows(const BlendInput<float>& in, const Patch& patch, Survivors& survivors,
                                       const Group& group) {
  GroupRows rows;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int k = lane_id() / 4 + 8 * i;
    const int64_t before = in.values_stride ? int64_t(patch.tile.view) * in.n : 0;
    rows.of[i] = k < group.count ? before + survivors.at(group.first + k).id : -1;
  }
  return rows;
}

// Units of channels whose values are read at a time, as many as there are registers for.
template <Precision P>
constexpr int kUnitsAtATime = P == Precision::kFp32 ? 1 : 2;

// Over 64 channels from `channel` on.
template <Precision P>
__device__ void add_products(const Rows& values, const GroupRows& rows, int channel, const Image<P>& image, int places,
                             float (&sums)[kColumns][4]) {
#pragma unroll
  for (int first = 0; first < kUnits; first += kUnitsAtATime<P>) {
    Four fours[2][kUnitsAtATime<P>];
    load_fours(values, rows.of, channel + 16 * first + contracted(), 16, fours);
#pragma unroll
    for (int i = 0; i < kUnitsAtATime<P>; ++i) {
      const Left<P> left = make_left<P>(fours[0][i], fours[1][i]);
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        if (8 * n < places) multiply_add(sums[n], left, image[n][first + i].get());
    }
  }
}

// All threads: the first becomes the sum.
__device__ inline void sum_over_warps(Scores* scores) {
  for (int i = int(threadIdx.x); i < kColumns * kWarp; i += int(blockDim.x)) {
    Four sum = scores[0].fours[i];
    for (int warp = 1; warp < warps(); ++warp) {
      const Four x = scores[warp].fours[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum.v[j] += x.v[j];
    }
    scores[0].fours[i] = sum;
  }
}

// Warp 0: alpha becomes q = dL/dσ, from back to front.
__device__ inline void step_back(Patch& patch, float* behind, const Group& group, Alphas::Numbers& pairs,
                                 const Scores& scores) {
#pragma unroll
  for (int p = lane_id(); p < kPixels; p += kWarp) {
    float T = patch.T[p], b = behind[p];
    for (int k = 0; k < group.count; ++k) {
      const float alpha = pairs[k][p], inverse = reciprocal(1 - alpha), s = scores.at(k, p);
      if (alpha == 0) continue;
      T *= inverse;
      pairs[k][p] = math::pair_gradient<float>(alpha, inverse, T, s, b);
      b += alpha * T * s;
    }
    patch.T[p] = T, behind[p] = b;
  }
}

__device__ inline void add_moments(const BlendInput<float>& in, const WideSums& to, const Patch& patch,
                                   Survivors& survivors, const Group& group, const Alphas::Numbers& q) {
  const int index = scattered_index<kMoments>(lane_id());
  for (int k = warp_id(); k < group.count; k += warps()) {
    if (!__any_sync(kFullWarp, q[k][lane_id()] != 0 || q[k][lane_id() + kWarp] != 0)) continue;
    const Survivor s = survivors.at(group.first + k);
    float sums[kMoments] = {};
#pragma unroll
    for (int p = lane_id(); p < kPixels; p += kWarp) {
      float moments[kMoments];
      math::pair_moments(s, patch.x[p] - s.x, patch.y[p] - s.y, q[k][p], moments);
#pragma unroll
      for (int m = 0; m < kMoments; ++m) sums[m] += moments[m];
    }
    const float sum = reduce_scatter(sums);
    const int64_t row = sum_row(in, to, patch.tile, s, true);
    if (index >= 0 && row >= 0) atomicAdd(to.sums + row * to.stride + index, sum);
  }
}

// kResident: the block's warps hold the image. If it has more channels, they take them window after window in each
// group, reading the image again.
template <Precision P, bool kResident>
__global__ void __launch_bounds__(kMostThreads, 1)
    wide_geometry_kernel(const BlendInput<float> in, const Packed<float>* packed, const WideUpstream upstream,
                         const WideSums to) {
  if (!kCallable) return;
  GSF_SHARED(Patch, patch, );
  GSF_SHARED(Survivors, survivors, );
  GSF_SHARED(Alphas, pairs, );
  GSF_SHARED(Scores, scores, [kMostWarps]);
  GSF_SHARED(float, behind, [kPixels]);
  const int blocks = blocks_of_tile(to), channels = int(in.channels), own = warp_id() * kWarpChannels;
  const Tile tile = locate(in, blockIdx.x / unsigned(blocks));
  if (!wants(to, tile)) return;
  const Rows values = make_rows(in.values, in.storage, in.channels, 0, channels);
  const Rows v_image = make_rows(upstream.v_image, in.storage, in.channels, 0, channels);
  const auto blended = [&](int position, int p) { return position < patch.last[p]; };

  for (int number = int(blockIdx.x) % blocks; number < count_patches(in, tile.index); number += blocks) {
    const int places = fill_patch(in, tile, number, patch);
    const int used = start_at_end(in, upstream, v_image, patch, behind);
    Image<P> image;
    if (kResident) load_image<P>(v_image, patch, own, image);
    Walk<Survivors> walk{in, packed, patch, survivors, used - 1, -1, -1};
    Group current = walk.take(), previous = {0, 0};
    for (int buffer = 0; current.count > 0 || previous.count > 0; buffer ^= 1) {
      evaluate(patch, survivors, current, pairs.of[buffer], blended);
      if (warp_id() == 0 && previous.count > 0) {
        step_back(patch, behind, previous, pairs.of[buffer ^ 1], scores[0]);
        __syncwarp();
      }
      float sums[kColumns][4] = {};
      const GroupRows rows = value_rows(in, patch, survivors, current);
      for (int channel = own; channel < channels && current.count > 0; channel += kMostChannels) {
        if (!kResident) load_image<P>(v_image, patch, channel, image);
        add_products<P>(values, rows, channel, image, places, sums);
        if (kResident) break;
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
        scores[warp_id()].fours[Scores::slot(n, lane_id())] = {sums[n][0], sums[n][1], sums[n][2], sums[n][3]};
      __syncthreads();
      sum_over_warps(scores);
      add_moments(in, to, patch, survivors, previous, pairs.of[buffer ^ 1]);
      previous = current, current = walk.take();
      __syncthreads();
    }
  }
}

}  // namespace

cudaError_t wide_geometry(const BlendInput<float>& in, const Packed<float>* packed, const WideUpstream& upstream,
                          const WideSums& to, cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height);
  const auto launch = [&](auto precision, auto resident) {
    return GSF_LAUNCH((wide_geometry_kernel<decltype(precision)::value, decltype(resident)::value>),
                      tiles * blocks_of_tile(to), warps_for(in.channels) * kWarp, stream, in, packed, upstream, to);
  };
  const auto of_precision = [&](auto precision) {
    return in.channels <= kMostChannels ? launch(precision, std::true_type()) : launch(precision, std::false_type());
  };
  // In bfloat16 the moments, which are small differences of large sums, lose more than the products gain.
  return in.precision == Precision::kFp32 ? of_precision(std::integral_constant<Precision, Precision::kFp32>())
                                          : of_precision(std::integral_constant<Precision, Precision::kTf32>());
}

}  // namespace gsfields::cuda
