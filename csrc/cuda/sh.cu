// Spherical harmonics on the GPU: a thread takes one Gaussian through all views. The maths is csrc/math/sh.h.
#include "kernels.h"

#include "../math/sh.h"
#include "launch.h"
#include "tunables.h"

namespace gsfields::cuda {
namespace {

constexpr int kCoefficients = (math::kMaxShDegree + 1) * (math::kMaxShDegree + 1);

// The basis at one direction; only the first `count` functions apply.
template <class S>
struct Basis {
  S unit[3], inv_norm, Y[kCoefficients];
  bool directed;
  int count;
};

template <class S>
__device__ Basis<S> make_basis(const ShArgs<S>& a, int64_t at) {
  Basis<S> b = {};
  b.directed = math::unit(a.dirs + 3 * at, b.unit, b.inv_norm);
  const int degree = b.directed ? a.degree : 0;
  b.count = (degree + 1) * (degree + 1);
  math::sh_basis(degree, b.unit[0], b.unit[1], b.unit[2], b.Y);
  return b;
}

// A warp stages the rows of its 32 Gaussians in shared memory, kStagedChannels channels at a time, because a row of
// global memory is for neighbouring threads to read, not for one. sh0, whose rows are short, is read directly.
constexpr int kStagedChannels = 3, kStaged = (kCoefficients - 1) * kStagedChannels;
static_assert(kStaged % 2 == 1, "rows begin in different banks");
template <class S>
using StagedRow = S[kStaged];  // coefficient k >= 1, channel d at (k - 1) · kStagedChannels + d

struct Channels {
  int64_t first;
  int count;
};

template <class S>
__device__ Channels channels_from(const ShArgs<S>& a, int64_t first) {
  return {first, int(math::min(a.channels - first, int64_t(kStagedChannels)))};
}

// Calls f(row, staged, at) with the place of each coefficient beyond the first, in the staged row and in a row of
// global memory, for the rows of the warp that `rows` has a bit for. Lanes take consecutive places.
template <class S, class F>
__device__ void for_staged(const ShArgs<S>& a, const Channels& channels, int64_t coefficients, unsigned rows, F f) {
  for (int c = int(threadIdx.x % 32); c < coefficients * kStagedChannels; c += 32) {
    const int k = c / kStagedChannels, d = c % kStagedChannels;
    if (d >= channels.count) continue;
#pragma unroll 8
    for (int row = 0; row < 32; ++row)
      if (rows >> row & 1) f(row, c, k * a.channels + channels.first + d);
  }
}

template <class S>
__device__ bool seen(const ShArgs<S>& a, int64_t at) {
  return !a.masks || a.masks[at];
}

template <class S>
__device__ bool seen_in_any_view(const ShArgs<S>& a, int64_t i) {
  for (int64_t view = 0; view < a.views; ++view)
    if (seen(a, view * a.n + i)) return true;
  return false;
}

// Stages the coefficients that the degree uses of Gaussians that a view sees.
template <class S>
__device__ void stage(const ShArgs<S>& a, const Channels& channels, int64_t first, unsigned rows,
                      StagedRow<S>* staged) {
  const S* from = a.shN + first * a.shN_stride;
  __syncwarp();  // what was staged before may still be in use
  for_staged(a, channels, (a.degree + 1) * (a.degree + 1) - 1, rows,
             [&](int row, int c, int64_t at) { staged[row][c] = __ldg(from + row * a.shN_stride + at); });
  __syncwarp();
}

// A thread's Gaussian and its row; the warp's first Gaussian and rows. Gaussians from n on are for the warp's sake.
struct Place {
  int64_t i, first;
  int row, first_row;
  __device__ Place()
      : i(int64_t(blockIdx.x) * kShBlock + threadIdx.x),
        first(i - threadIdx.x % 32),
        row(int(threadIdx.x)),
        first_row(row - row % 32) {}
};

// Loops over coefficients are unrolled, so that Y stays in registers.
template <class S>
__global__ void __launch_bounds__(kShBlock, 24 / int(sizeof(S))) sh_kernel(const ShArgs<S> a) {
  GSF_SHARED(S, staged, [kShBlock][kStaged]);
  const Place p;
  const unsigned rows = __ballot_sync(0xffffffffu, p.i < a.n && seen_in_any_view(a, p.i));
  for (int64_t first = 0; first < a.channels; first += kStagedChannels) {
    const Channels channels = channels_from(a, first);
    stage(a, channels, p.first, rows, staged + p.first_row);
    if (p.i >= a.n) continue;
    const S* const sh0 = a.sh0 + p.i * a.sh0_stride + first;
    for (int64_t view = 0; view < a.views; ++view) {
      const int64_t at = view * a.n + p.i;
      Basis<S> basis = {};
      if (seen(a, at)) basis = make_basis(a, at);
      for (int d = 0; d < channels.count; ++d) {
        S color = basis.count > 0 ? basis.Y[0] * sh0[d] : S(0);
#pragma unroll
        for (int k = 1; k < kCoefficients; ++k)
          if (k < basis.count) color += basis.Y[k] * staged[p.row][(k - 1) * kStagedChannels + d];
        a.colors[at * a.channels + first + d] = color;
      }
    }
  }
}

// The gradient of a direction by some channels is added to that by the channels before.
template <class S>
__device__ void add_direction_grad(const ShArgs<S>& a, int64_t at, const Channels& channels, const StagedRow<S>& row) {
  S v_dir[3] = {};
  const Basis<S> basis = seen(a, at) ? make_basis(a, at) : Basis<S>{};
  if (basis.directed) {
    S s[kCoefficients] = {}, v_unit[3];  // s[0] has no part in it
    for (int d = 0; d < channels.count; ++d) {
      const S v = a.v_colors[at * a.channels + channels.first + d];
#pragma unroll
      for (int k = 1; k < kCoefficients; ++k)
        if (k < basis.count) s[k] += row[(k - 1) * kStagedChannels + d] * v;
    }
    math::sh_direction_grad(a.degree, basis.unit[0], basis.unit[1], basis.unit[2], s, v_unit);
    math::unit_backward(basis.unit, basis.inv_norm, v_unit, v_dir);
  }
  for (int k = 0; k < 3; ++k) a.v_dirs[3 * at + k] = (channels.first ? a.v_dirs[3 * at + k] : S(0)) + v_dir[k];
}

// Gradients of the coefficients, summed over views: of the first to v_sh0, of the others to the staged row.
template <class S>
__device__ void coefficient_grads(const ShArgs<S>& a, int64_t i, const Channels& channels, S* v_sh0,
                                  StagedRow<S>& row) {
  S v_first[kStagedChannels] = {};
  for (int c = 0; c < kStaged; ++c) row[c] = 0;
  for (int64_t view = 0; view < a.views; ++view) {
    const int64_t at = view * a.n + i;
    if (!seen(a, at)) continue;
    const Basis<S> basis = make_basis(a, at);
#pragma unroll
    for (int d = 0; d < kStagedChannels; ++d) {
      const S v = d < channels.count ? a.v_colors[at * a.channels + channels.first + d] : S(0);
      v_first[d] += basis.Y[0] * v;
#pragma unroll
      for (int k = 1; k < kCoefficients; ++k)
        if (k < basis.count) row[(k - 1) * kStagedChannels + d] += basis.Y[k] * v;
    }
  }
#pragma unroll
  for (int d = 0; d < kStagedChannels; ++d)
    if (d < channels.count) v_sh0[d] = v_first[d];
}

template <class S>
__global__ void __launch_bounds__(kShBlock, 16 / int(sizeof(S))) sh_backward_kernel(const ShArgs<S> a) {
  GSF_SHARED(S, staged, [kShBlock][kStaged]);
  const Place p;
  const bool here = p.i < a.n;
  const unsigned rows = __ballot_sync(0xffffffffu, here && seen_in_any_view(a, p.i));
  const unsigned all = __ballot_sync(0xffffffffu, here);
  S* const v_shN = a.v_shN + p.first * a.rest * a.channels;
  for (int64_t first = 0; first == 0 || first < a.channels; first += kStagedChannels) {  // v_dirs in any case
    const Channels channels = channels_from(a, first);
    stage(a, channels, p.first, rows, staged + p.first_row);
    if (here) {
      for (int64_t view = 0; view < a.views; ++view) add_direction_grad(a, view * a.n + p.i, channels, staged[p.row]);
      // Only this thread still needs its row, which now takes the gradients.
      coefficient_grads(a, p.i, channels, a.v_sh0 + p.i * a.channels + first, staged[p.row]);
    }
    __syncwarp();
    for_staged(a, channels, a.rest, all, [&](int row, int c, int64_t at) {
      v_shN[row * a.rest * a.channels + at] = c < kStaged ? staged[p.first_row + row][c] : S(0);
    });
  }
}

}  // namespace

template <class S>
cudaError_t sh(const ShArgs<S>& a, cudaStream_t stream) {
  return GSF_LAUNCH(sh_kernel, blocks_for(a.n, kShBlock), kShBlock, stream, a);
}

template <class S>
cudaError_t sh_backward(const ShArgs<S>& a, cudaStream_t stream) {
  return GSF_LAUNCH(sh_backward_kernel, blocks_for(a.n, kShBlock), kShBlock, stream, a);
}

template cudaError_t sh(const ShArgs<float>&, cudaStream_t);
template cudaError_t sh(const ShArgs<double>&, cudaStream_t);
template cudaError_t sh_backward(const ShArgs<float>&, cudaStream_t);
template cudaError_t sh_backward(const ShArgs<double>&, cudaStream_t);

}  // namespace gsfields::cuda
