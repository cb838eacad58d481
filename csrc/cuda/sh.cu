// Spherical harmonics on the GPU: a thread takes one Gaussian through all views. The maths is csrc/math/sh.h.
#include "../math/sh.h"

#include "kernels.h"
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

// Coefficient k of Gaussian i, and its gradient: [D].
template <class S>
__device__ const S* coefficient(const ShArgs<S>& a, int64_t i, int k) {
  return k == 0 ? a.sh0 + i * a.sh0_stride : a.shN + i * a.shN_stride + (k - 1) * a.channels;
}
template <class S>
__device__ S* v_coefficient(const ShArgs<S>& a, int64_t i, int64_t k) {
  return k == 0 ? a.v_sh0 + i * a.channels : a.v_shN + (i * a.rest + k - 1) * a.channels;
}

// Loops over coefficients are unrolled, so that Y stays in registers.
template <class S>
__global__ void __launch_bounds__(kShBlock) sh_kernel(const ShArgs<S> a) {
  const int64_t i = int64_t(blockIdx.x) * kShBlock + threadIdx.x;
  if (i >= a.n) return;
  for (int64_t view = 0; view < a.views; ++view) {
    const int64_t at = view * a.n + i;
    const bool seen = !a.masks || a.masks[at];
    Basis<S> basis = {};
    if (seen) basis = make_basis(a, at);
    for (int64_t d = 0; d < a.channels; ++d) {
      S color = 0;
#pragma unroll
      for (int k = 0; k < kCoefficients; ++k)
        if (k < basis.count) color += basis.Y[k] * coefficient(a, i, k)[d];
      a.colors[at * a.channels + d] = color;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kShBlock) sh_backward_kernel(const ShArgs<S> a) {
  const int64_t i = int64_t(blockIdx.x) * kShBlock + threadIdx.x;
  if (i >= a.n) return;
  const int used = (a.degree + 1) * (a.degree + 1);
  bool started = false;  // the first view that is seen sets the coefficients' gradients, later ones add to them
  for (int64_t view = 0; view < a.views; ++view) {
    const int64_t at = view * a.n + i;
    S v_dir[3] = {};
    if (!a.masks || a.masks[at]) {
      const Basis<S> basis = make_basis(a, at);
      S s[kCoefficients] = {};
      for (int64_t d = 0; d < a.channels; ++d) {
        const S v = a.v_colors[at * a.channels + d];
#pragma unroll
        for (int k = 0; k < kCoefficients; ++k) {
          if (k >= used) continue;
          S& total = v_coefficient(a, i, k)[d];
          const S before = started ? total : S(0);
          total = k < basis.count ? before + basis.Y[k] * v : before;
          if (k < basis.count) s[k] += coefficient(a, i, k)[d] * v;
        }
      }
      started = true;
      if (basis.directed) {
        S v_unit[3];
        math::sh_direction_grad(a.degree, basis.unit[0], basis.unit[1], basis.unit[2], s, v_unit);
        math::unit_backward(basis.unit, basis.inv_norm, v_unit, v_dir);
      }
    }
    for (int k = 0; k < 3; ++k) a.v_dirs[3 * at + k] = v_dir[k];
  }
  for (int64_t k = started ? used : 0; k <= a.rest; ++k)
    for (int64_t d = 0; d < a.channels; ++d) v_coefficient(a, i, k)[d] = 0;
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
