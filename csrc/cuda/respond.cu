// Moving Gaussians at one time of a video, on the GPU: a thread has a Gaussian of its own, whose response, 7 rows of
// rank numbers, is for its warp to read. The maths is csrc/math/respond.h.
#include "kernels.h"

#include "../math/respond.h"
#include "launch.h"
#include "tunables.h"
#include "warp.h"

namespace gsfields::cuda {
namespace {

using math::kResponses;

// What the rows of a Gaussian's response come to, or their gradients. (An odd number: rows begin in different banks.)
template <class S>
using Rows = S[kResponses];
static_assert(kResponses % 2 == 1);

// A thread's Gaussian and its warp's first.
struct Place {
  int64_t i, first;
  int row, first_row;
  __device__ Place()
      : i(int64_t(blockIdx.x) * kRespondBlock + threadIdx.x),
        first(i - lane_id()),
        row(int(threadIdx.x)),
        first_row(row - lane_id()) {}
};

template <class S>
__device__ math::Gate<S> gate_of(const RespondArgs<S>& a, int64_t i) {
  const S window[2] = {a.windows[2 * i], a.windows[2 * i + 1]};
  return math::gate_at(window, __ldg(a.time), a.softness);
}

// The products of the code with the rows of each Gaussian of the warp that `living` has a bit for.
template <class S>
__device__ void respond_of(const RespondArgs<S>& a, int64_t first, unsigned living, Rows<S>* products) {
  const int lane = lane_id(), mine = scattered_index<kResponses>(lane);
  for (; living; living &= living - 1) {
    const int row = __ffs(int(living)) - 1;
    const S* const response = a.response + (first + row) * kResponses * a.rank;
    S sums[kResponses] = {};
    for (int64_t d = lane; d < a.rank; d += kWarp) {
      const S code = __ldg(a.code + d);
#pragma unroll
      for (int k = 0; k < kResponses; ++k) sums[k] += code * __ldg(response + k * a.rank + d);
    }
    const S sum = reduce_scatter(sums);
    if (mine >= 0) products[row][mine] = sum;
  }
  __syncwarp();
}

template <class S>
__global__ void __launch_bounds__(kRespondBlock, 32 / int(sizeof(S))) respond_kernel(const RespondArgs<S> a) {
  GSF_SHARED(S, products, [kRespondBlock][kResponses]);
  const Place p;
  const bool here = p.i < a.n;  // the others stay for the sake of the warp
  const S gate = here ? gate_of(a, p.i).value : S(0);
  const unsigned living = __ballot_sync(kFullWarp, gate >= S(math::kAlphaMin));
  respond_of(a, p.first, living, products + p.first_row);
  if (!here) return;
  S r[kResponses] = {}, opacity = 0;
  if (gate >= S(math::kAlphaMin))
    opacity = math::opacity_at<S>(a.logits[p.i] + products[p.row][math::kOpacityRow], gate);
  if (opacity > 0)
    for (int k = 0; k < kResponses; ++k) r[k] = products[p.row][k];
  S mean[3], quat[4];
  for (int k = 0; k < 3; ++k) mean[k] = a.means[3 * p.i + k] + r[k];
  for (int k = 0; k < 4; ++k) quat[k] = a.quats[4 * p.i + k];
  if (a.pose) math::to_world(math::make_pose(a.pose), mean, quat);
  for (int k = 0; k < 3; ++k) {
    a.means_t[3 * p.i + k] = mean[k];
    a.colors_t[3 * p.i + k] = math::max(a.colors[3 * p.i + k] + r[math::kColorRow + k], S(0));
  }
  for (int k = 0; k < 4; ++k) a.quats_t[4 * p.i + k] = quat[k];
  a.opacities_t[p.i] = opacity;
}

// ---- gradients -----------------------------------------------------------------------------------------------------

// Writes the gradients of Gaussian i but for its response's, which are v_r times the code. Whether any of these is not
// 0.
template <class S>
__device__ bool backward_of(const RespondBackwardArgs<S>& a, int64_t i, Rows<S>& v_r) {
  const RespondArgs<S>& f = a.forward;
  S v_mean[3], v_quat[4], v_color[3];
  for (int k = 0; k < 3; ++k) v_mean[k] = a.v_means_t[3 * i + k];
  for (int k = 0; k < 4; ++k) v_quat[k] = a.v_quats_t[4 * i + k];
  for (int k = 0; k < 3; ++k) v_color[k] = f.colors_t[3 * i + k] > 0 ? a.v_colors_t[3 * i + k] : S(0);
  if (f.pose) math::to_world_backward(math::make_pose(f.pose), v_mean, v_quat);
  const S opacity = f.opacities_t[i], v_opacity = a.v_opacities_t[i];
  const auto gate = gate_of(f, i);
  const S v_logit = math::logit_grad(opacity, gate.value, v_opacity);
  for (int k = 0; k < 3; ++k) a.v_means[3 * i + k] = v_mean[k], a.v_colors[3 * i + k] = v_color[k];
  for (int k = 0; k < 4; ++k) a.v_quats[4 * i + k] = v_quat[k];
  a.v_logits[i] = v_logit;
  a.v_windows[2 * i] = v_opacity * opacity * gate.to_middle;
  a.v_windows[2 * i + 1] = v_opacity * opacity * gate.to_log_half;
  bool moved = false;
  for (int k = 0; k < kResponses; ++k) {
    v_r[k] = k < math::kOpacityRow ? v_mean[k] : k < math::kColorRow ? v_logit : v_color[k - math::kColorRow];
    moved |= v_r[k] != 0;
  }
  return opacity > 0 && moved;
}

// Writes column d of the responses' gradients of the warp's Gaussians `rows`, of which all but `moving` are 0. Returns
// what these contribute to the code's gradient there.
template <class S>
__device__ S response_grads(const RespondBackwardArgs<S>& a, int64_t first, unsigned rows, unsigned moving, int64_t d,
                            const Rows<S>* v_r) {
  const int64_t rank = a.forward.rank;
  const S code = __ldg(a.forward.code + d);
  S sum = 0;
  for (unsigned left = rows; left; left &= left - 1) {
    const int row = __ffs(int(left)) - 1;
    const bool moved = moving >> row & 1;
    const int64_t at = (first + row) * kResponses * rank + d;
#pragma unroll
    for (int k = 0; k < kResponses; ++k) {
      if (a.v_response) a.v_response[at + k * rank] = moved ? v_r[row][k] * code : S(0);
      if (a.v_codes && moved) sum += v_r[row][k] * __ldg(a.forward.response + at + k * rank);
    }
  }
  return sum;
}

// Sums over the block's warps in their order: the value of each lane. The first warp receives them. All threads of the
// block must call it.
template <int kThreads, class S>
__device__ S sum_over_warps(S value) {
  GSF_SHARED(S, values, [kThreads]);
  __syncthreads();  // an earlier call may still be reading
  values[threadIdx.x] = value;
  __syncthreads();
  S sum = 0;
  for (int i = int(threadIdx.x); i < kThreads && threadIdx.x < kWarp; i += kWarp) sum += values[i];
  return sum;
}

// One block is one part of v_codes, where the gradient of the code is wanted.
template <class S>
__global__ void __launch_bounds__(kRespondBlock, 32 / int(sizeof(S)))
    respond_backward_kernel(const RespondBackwardArgs<S> a) {
  GSF_SHARED(S, v_r, [kRespondBlock][kResponses]);
  const Place p;
  const bool here = p.i < a.forward.n;  // the other threads stay for the sums
  const bool moved = here && backward_of(a, p.i, v_r[p.row]);
  const unsigned rows = __ballot_sync(kFullWarp, here), moving = __ballot_sync(kFullWarp, moved);
  __syncwarp();
  if (!a.v_response && !a.v_codes) return;
  for (int64_t d = lane_id(), first = 0; first < a.forward.rank; d += kWarp, first += kWarp) {
    const bool inside = d < a.forward.rank;
    const S mine = inside ? response_grads(a, p.first, rows, moving, d, v_r + p.first_row) : S(0);
    if (!a.v_codes) continue;
    const S sum = sum_over_warps<kRespondBlock>(mine);
    if (inside && threadIdx.x < kWarp) a.v_codes[blockIdx.x * a.forward.rank + d] = sum;
  }
}

// One block per warp's width of the code.
template <class S>
__global__ void __launch_bounds__(kRespondSumBlock)
    sum_codes_kernel(const S* v_codes, int64_t parts, int64_t rank, S* v_code) {
  const int64_t d = int64_t(blockIdx.x) * kWarp + lane_id();
  S mine = 0;
  if (d < rank)
    for (int64_t part = threadIdx.x / kWarp; part < parts; part += kRespondSumBlock / kWarp)
      mine += v_codes[part * rank + d];
  const S sum = sum_over_warps<kRespondSumBlock>(mine);
  if (d < rank && threadIdx.x < kWarp) v_code[d] = sum;
}

}  // namespace

int64_t response_parts(int64_t n) { return blocks_for(n, kRespondBlock); }

template <class S>
cudaError_t respond(const RespondArgs<S>& a, cudaStream_t stream) {
  return GSF_LAUNCH(respond_kernel, blocks_for(a.n, kRespondBlock), kRespondBlock, stream, a);
}

template <class S>
cudaError_t respond_backward(const RespondBackwardArgs<S>& a, S* v_code, cudaStream_t stream) {
  const int64_t parts = response_parts(a.forward.n), rank = a.forward.rank;
  GSF_STEP(GSF_LAUNCH(respond_backward_kernel, parts, kRespondBlock, stream, a));
  if (!v_code) return cudaSuccess;
  return GSF_LAUNCH(sum_codes_kernel, blocks_for(rank, kWarp), kRespondSumBlock, stream, a.v_codes, parts, rank,
                    v_code);
}

template cudaError_t respond(const RespondArgs<float>&, cudaStream_t);
template cudaError_t respond(const RespondArgs<double>&, cudaStream_t);
template cudaError_t respond_backward(const RespondBackwardArgs<float>&, float*, cudaStream_t);
template cudaError_t respond_backward(const RespondBackwardArgs<double>&, double*, cudaStream_t);

}  // namespace gsfields::cuda
