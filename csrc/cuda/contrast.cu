// Losses on pairs of pixels, on the GPU: a warp has a pixel, and each of its lanes takes others in turn. The gradient
// of the others is the same with the roles exchanged, so that no sum needs an atomic.
#include "kernels.h"

#include "launch.h"
#include "tunables.h"
#include "warp.h"

namespace gsfields::cuda {
namespace {

// What pixel i and other j make: exp(score) is what the pair counts.
template <class S>
struct Pair {
  S score, steepness;  // steepness: what multiplies f - f' in the slope of x, 0 where the two coincide
  bool partner;

  __device__ Pair(const ContrastArgs<S>& a, int64_t i, int64_t j) {
    S squared = 0;
    for (int64_t k = 0; k < a.dim; ++k) {
      const S difference = __ldg(a.features + i * a.dim + k) - __ldg(a.other_features + j * a.dim + k);
      squared += difference * difference;
    }
    const bool same = __ldg(a.segments + i) == __ldg(a.other_segments + j);
    const S sharpness = same ? a.partner_sharpness : a.sharpness;
    const S distance = a.squared ? squared : math::sqrt(squared), x = distance * sharpness;
    score = a.two_exponentials ? math::exp(-x) : -x;
    steepness = a.squared ? 2 * sharpness : distance > 0 ? sharpness / distance : S(0);
    partner = same && (a.own_partner || i != j);
  }
};

// The logarithm of a sum of exponentials, as top + log(sum).
template <class S>
struct LogSum {
  S top = -INFINITY, sum = 0;

  __device__ void add(S score) {
    if (score > top)
      sum = sum * math::exp(top - score) + 1, top = score;
    else
      sum += math::exp(score - top);
  }

  // Of the lanes of a warp; none has added anything where top remains -inf.
  __device__ void gather() {
    S highest = top;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      highest = math::max(highest, __shfl_xor_sync(kFullWarp, highest, offset));
    sum *= top > -INFINITY ? math::exp(top - highest) : S(0);
    top = highest;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  }
};

__device__ int64_t row_of_warp() { return (int64_t(blockIdx.x) * kContrastBlock + threadIdx.x) / kWarp; }

template <class S>
__global__ void __launch_bounds__(kContrastBlock, kWarpPerRowBlocks) contrast_kernel(const ContrastArgs<S> a) {
  const int64_t i = row_of_warp();
  if (i >= a.pixels) return;
  LogSum<S> all, own;
  for (int64_t j = lane_id(); j < a.others; j += kWarp) {
    const Pair<S> pair(a, i, j);
    all.add(pair.score);
    if (pair.partner) own.add(pair.score);
  }
  all.gather(), own.gather();
  if (lane_id() != 0) return;
  const bool alone = own.top == -INFINITY && own.sum == 0;  // no loss, no gradient
  const S log_all = math::log(all.sum), log_own = math::log(own.sum);
  a.losses[i] = alone ? S(0) : all.top - own.top + (log_all - log_own);
  a.logsums[2 * i] = alone ? S(INFINITY) : all.top + log_all;
  a.logsums[2 * i + 1] = alone ? S(INFINITY) : own.top + log_own;
}

constexpr int kContrastChunk = 8;  // numbers of an embedding whose sums registers hold

// Of the pixels' embeddings, or of the others'.
template <bool kOfOthers, class S>
__global__ void __launch_bounds__(kContrastBlock, kWarpPerRowBlocks) contrast_backward_kernel(const ContrastArgs<S> a) {
  const int64_t mine = row_of_warp(), count = kOfOthers ? a.pixels : a.others;
  if (mine >= (kOfOthers ? a.others : a.pixels)) return;
  S* const v = (kOfOthers ? a.v_other_features : a.v_features) + mine * a.dim;
  const int lane = lane_id(), scattered = scattered_index<kContrastChunk>(lane);
  for (int64_t first = 0; first < a.dim; first += kContrastChunk) {
    const int chunk = int(math::min(a.dim - first, int64_t(kContrastChunk)));
    S sums[kContrastChunk] = {};
    for (int64_t n = lane; n < count; n += kWarp) {
      const int64_t i = kOfOthers ? n : mine, j = kOfOthers ? mine : n;
      const Pair<S> pair(a, i, j);
      const S share = math::exp(pair.score - a.logsums[2 * i]);
      const S own = pair.partner ? math::exp(pair.score - a.logsums[2 * i + 1]) : S(0);
      const S pull = (own - share) * pair.steepness * a.v_losses[i] * (a.two_exponentials ? pair.score : S(1));
      const S *const f = a.features + i * a.dim + first, *const other = a.other_features + j * a.dim + first;
#pragma unroll
      for (int k = 0; k < kContrastChunk; ++k)
        if (k < chunk) sums[k] += pull * (kOfOthers ? other[k] - f[k] : f[k] - other[k]);
    }
    const S sum = reduce_scatter(sums);
    if (scattered >= 0 && scattered < chunk) v[first + scattered] = sum;
  }
}

constexpr int kRows = kContrastBlock / kWarp;  // of a block

}  // namespace

template <class S>
cudaError_t contrast(const ContrastArgs<S>& a, bool backward, cudaStream_t stream) {
  if (!backward) return GSF_LAUNCH(contrast_kernel, blocks_for(a.pixels, kRows), kContrastBlock, stream, a);
  GSF_STEP(GSF_LAUNCH((contrast_backward_kernel<false, S>), blocks_for(a.pixels, kRows), kContrastBlock, stream, a));
  if (!a.v_other_features) return cudaSuccess;
  return GSF_LAUNCH((contrast_backward_kernel<true, S>), blocks_for(a.others, kRows), kContrastBlock, stream, a);
}

template cudaError_t contrast(const ContrastArgs<float>&, bool, cudaStream_t);
template cudaError_t contrast(const ContrastArgs<double>&, bool, cudaStream_t);

}  // namespace gsfields::cuda
