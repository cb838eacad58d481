// Projection on the GPU: a thread takes one Gaussian through all views. The maths is csrc/math/projection.h.
#include "kernels.h"

#include "../math/projection.h"
#include "launch.h"
#include "tunables.h"

namespace gsfields::cuda {
namespace {

template <class S>
struct Gaussian {
  S mean[3], quat[4], scale[3], opacity;
};

template <int K, class S>
__device__ void load_row(const S* rows, int64_t row, S* to) {
  for (int k = 0; k < K; ++k) to[k] = rows[K * row + k];
}

template <int K, class S>
__device__ void store_row(S* rows, int64_t row, const S* from) {
  for (int k = 0; k < K; ++k) rows[K * row + k] = from[k];
}

template <class S>
__device__ Gaussian<S> load_gaussian(const ProjectArgs<S>& a, int64_t i) {
  Gaussian<S> g;
  load_row<3>(a.means, i, g.mean), load_row<4>(a.quats, i, g.quat), load_row<3>(a.scales, i, g.scale);
  g.opacity = a.opacities[i];
  return g;
}

template <class S>
__device__ math::View<S> load_view(const ProjectArgs<S>& a, int64_t view) {
  return math::make_view(a.viewmats + 16 * view, a.Ks + 9 * view, a.width, a.height, a.near_plane, a.far_plane,
                         a.eps2d);
}

template <class S>
__global__ void __launch_bounds__(kProjectBlock) project_kernel(const ProjectArgs<S> a) {
  const int64_t i = int64_t(blockIdx.x) * kProjectBlock + threadIdx.x;
  if (i >= a.n) return;
  const Gaussian<S> gaussian = load_gaussian(a, i);
  for (int64_t view = 0; view < a.views; ++view) {
    math::Projected<S> out = {};
    if (math::usable_camera(a.viewmats + 16 * view, a.Ks + 9 * view)) {
      const auto v = load_view(a, view);
      const auto splat = math::make_splat(v, gaussian.mean, gaussian.quat, gaussian.scale);
      math::project(v, splat, gaussian.opacity, a.antialiased, out);
    }
    const int64_t at = view * a.n + i;
    const int32_t radii[2] = {math::radius(out.extent[0]), math::radius(out.extent[1])};
    store_row<2>(a.means2d, at, out.mean2d), store_row<3>(a.conics, at, out.conic), store_row<2>(a.radii, at, radii);
    a.depths[at] = out.depth, a.opacities2d[at] = out.opacity;
  }
}

// ---- gradients -----------------------------------------------------------------------------------------------------

constexpr int kViewGrads = 12;  // the upper three rows of a viewmat

// The sum of values[k] over the threads of the block, in an order that depends on nothing but their number. Thread
// k < kViewGrads receives sum k. All threads of the block must call it.
template <class S>
__device__ S block_sum(const S* values) {
  GSF_SHARED(S, rows, [kViewGrads][kProjectBlock]);
  const int thread = int(threadIdx.x);
  __syncthreads();  // an earlier call may still be reading
  for (int k = 0; k < kViewGrads; ++k) rows[k][thread] = values[k];
  for (int half = kProjectBlock / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half)
      for (int k = 0; k < kViewGrads; ++k) rows[k][thread] += rows[k][thread + half];
  }
  __syncthreads();
  return thread < kViewGrads ? rows[thread][0] : S(0);
}

// One block is one part of v_views, where gradients of viewmats are wanted.
template <class S>
__global__ void __launch_bounds__(kProjectBlock) project_backward_kernel(const ProjectBackwardArgs<S> a) {
  const ProjectArgs<S>& f = a.forward;
  const int64_t i = int64_t(blockIdx.x) * kProjectBlock + threadIdx.x;
  const bool here = i < f.n;  // the other threads stay for the sums
  Gaussian<S> gaussian = {}, sum = {};
  if (here) gaussian = load_gaussian(f, i);
  for (int64_t view = 0; view < f.views; ++view) {
    const int64_t at = view * f.n + i;
    S v_view[kViewGrads] = {};
    if (here && f.radii[2 * at] > 0) {
      math::ImageGrads<S> in;
      in.x = a.v_means2d[2 * at], in.y = a.v_means2d[2 * at + 1];
      load_row<3>(a.v_conics, at, in.conic);
      in.depth = a.v_depths[at], in.opacity = a.v_opacities2d[at];
      const auto v = load_view(f, view);
      const auto splat = math::make_splat(v, gaussian.mean, gaussian.quat, gaussian.scale);
      math::GaussianGrads<S> out;
      math::project_backward(v, splat, gaussian.mean, gaussian.scale, gaussian.opacity, f.antialiased, in, out);
      for (int k = 0; k < 3; ++k) sum.mean[k] += out.mean[k], sum.scale[k] += out.scale[k];
      for (int k = 0; k < 4; ++k) sum.quat[k] += out.quat[k];
      sum.opacity += out.opacity;
      for (int r = 0; r < 3; ++r) {
        for (int c = 0; c < 3; ++c) v_view[4 * r + c] = out.R[3 * r + c];
        v_view[4 * r + 3] = out.t[r];
      }
    }
    if (!a.v_views) continue;
    const S total = block_sum(v_view);
    if (threadIdx.x < kViewGrads) a.v_views[(blockIdx.x * f.views + view) * kViewGrads + threadIdx.x] = total;
  }
  if (!here) return;
  store_row<3>(a.v_means, i, sum.mean), store_row<4>(a.v_quats, i, sum.quat), store_row<3>(a.v_scales, i, sum.scale);
  a.v_opacities[i] = sum.opacity;
}

// One block per view.
template <class S>
__global__ void __launch_bounds__(kProjectBlock) sum_views_kernel(const S* v_views, int64_t parts, S* v_viewmats) {
  S sum[kViewGrads] = {};
  for (int64_t part = threadIdx.x; part < parts; part += kProjectBlock)
    for (int k = 0; k < kViewGrads; ++k) sum[k] += v_views[(part * gridDim.x + blockIdx.x) * kViewGrads + k];
  const S total = block_sum(sum);
  if (threadIdx.x < 16) v_viewmats[16 * int64_t(blockIdx.x) + threadIdx.x] = total;  // the last row is zero
}

}  // namespace

int64_t projection_parts(int64_t n) { return blocks_for(n, kProjectBlock); }

template <class S>
cudaError_t project(const ProjectArgs<S>& a, cudaStream_t stream) {
  return GSF_LAUNCH(project_kernel, blocks_for(a.n, kProjectBlock), kProjectBlock, stream, a);
}

template <class S>
cudaError_t project_backward(const ProjectBackwardArgs<S>& a, S* v_viewmats, cudaStream_t stream) {
  const int64_t parts = projection_parts(a.forward.n);
  GSF_STEP(GSF_LAUNCH(project_backward_kernel, parts, kProjectBlock, stream, a));
  if (!v_viewmats) return cudaSuccess;
  return GSF_LAUNCH(sum_views_kernel, a.forward.views, kProjectBlock, stream, a.v_views, parts, v_viewmats);
}

template cudaError_t project(const ProjectArgs<float>&, cudaStream_t);
template cudaError_t project(const ProjectArgs<double>&, cudaStream_t);
template cudaError_t project_backward(const ProjectBackwardArgs<float>&, float*, cudaStream_t);
template cudaError_t project_backward(const ProjectBackwardArgs<double>&, double*, cudaStream_t);

}  // namespace gsfields::cuda
