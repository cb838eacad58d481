// Projection and spherical harmonics over a range of Gaussians. Included by isa.cpp.
#pragma once

#include "../math/projection.h"
#include "../math/sh.h"
#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

template <class S, int L>
void project(const ProjectArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  for (int64_t view = 0; view < a.views; ++view) {
    const auto v =
        math::make_view(a.viewmats + 16 * view, a.Ks + 9 * view, a.width, a.height, a.near_plane, a.far_plane, a.eps2d);
    const int64_t at = view * a.n;
    for (int64_t i = begin; i < end; i += L) {
      const int64_t count = end - i < L ? end - i : L;
      V mean[3], quat[4], scale[3], opacity[1];
      load_rows<V, 3>(a.means, i, end, mean);
      load_rows<V, 4>(a.quats, i, end, quat);
      load_rows<V, 3>(a.scales, i, end, scale);
      load_rows<V, 1>(a.opacities, i, end, opacity);
      const auto g = math::make_splat(v, mean, quat, scale);

      math::Projected<V> out;
      math::project(v, g, opacity[0], a.antialiased, out);
      store_rows<V, 2>(a.means2d, at + i, count, out.mean2d);
      store_rows<V, 1>(a.depths, at + i, count, &out.depth);
      store_rows<V, 3>(a.conics, at + i, count, out.conic);
      store_rows<V, 1>(a.opacities2d, at + i, count, &out.opacity);
      for (int64_t l = 0; l < count; ++l)
        for (int k = 0; k < 2; ++k) a.radii[2 * (at + i + l) + k] = math::radius(S(out.extent[k][l]));
    }
  }
}

template <class S, int L>
void project_backward(const ProjectBackwardArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  const auto& f = a.forward;
  for (int64_t chunk = begin; chunk < end; chunk += kProjectChunk) {
    const int64_t chunk_end = chunk + kProjectChunk < end ? chunk + kProjectChunk : end;
    if (a.v_views)
      __builtin_memset(a.v_views + chunk / kProjectChunk * f.views * 12, 0, sizeof(S) * size_t(f.views) * 12);
    for (int64_t i = chunk; i < chunk_end; i += L) {
      const int64_t count = chunk_end - i < L ? chunk_end - i : L;
      V mean[3], quat[4], scale[3], opacity[1];
      load_rows<V, 3>(f.means, i, chunk_end, mean);
      load_rows<V, 4>(f.quats, i, chunk_end, quat);
      load_rows<V, 3>(f.scales, i, chunk_end, scale);
      load_rows<V, 1>(f.opacities, i, chunk_end, opacity);
      V sum[11] = {};  // mean, quat, scale, opacity
      for (int64_t view = 0; view < f.views; ++view) {
        const int64_t at = view * f.n;
        typename Lanes<S, L>::M visible = {};
        for (int64_t l = 0; l < count; ++l) visible[l] = f.radii[2 * (at + i + l)] > 0 ? -1 : 0;
        if (!any(visible)) continue;
        const auto v = math::make_view(f.viewmats + 16 * view, f.Ks + 9 * view, f.width, f.height, f.near_plane,
                                       f.far_plane, f.eps2d);
        V v_mean2d[2];
        math::ImageGrads<V> in;
        math::GaussianGrads<V> out;
        load_rows<V, 2>(a.v_means2d, at + i, at + chunk_end, v_mean2d);
        load_rows<V, 3>(a.v_conics, at + i, at + chunk_end, in.conic);
        load_rows<V, 1>(a.v_depths, at + i, at + chunk_end, &in.depth);
        load_rows<V, 1>(a.v_opacities2d, at + i, at + chunk_end, &in.opacity);
        in.x = v_mean2d[0], in.y = v_mean2d[1];
        const auto g = math::make_splat(v, mean, quat, scale);
        math::project_backward(v, g, mean, scale, opacity[0], f.antialiased, in, out);
        const V zero = {};
        for (int k = 0; k < 3; ++k) sum[k] += math::select(visible, out.mean[k], zero);
        for (int k = 0; k < 4; ++k) sum[3 + k] += math::select(visible, out.quat[k], zero);
        for (int k = 0; k < 3; ++k) sum[7 + k] += math::select(visible, out.scale[k], zero);
        sum[10] += math::select(visible, out.opacity, zero);
        if (a.v_views) {
          S* partial = a.v_views + (chunk / kProjectChunk * f.views + view) * 12;
          for (int64_t l = 0; l < count; ++l) {
            if (!visible[l]) continue;
            for (int k = 0; k < 9; ++k) partial[k] += out.R[k][l];
            for (int k = 0; k < 3; ++k) partial[9 + k] += out.t[k][l];
          }
        }
      }
      store_rows<V, 3>(a.v_means, i, count, sum);
      store_rows<V, 4>(a.v_quats, i, count, sum + 3);
      store_rows<V, 3>(a.v_scales, i, count, sum + 7);
      store_rows<V, 1>(a.v_opacities, i, count, sum + 10);
    }
  }
}

template <class S>
GSF_HD const S* sh_row(const ShArgs<S>& a, int64_t i, int k) {
  return k == 0 ? a.sh0 + i * a.sh0_stride : a.shN + i * a.shN_stride + (k - 1) * a.channels;
}

// D channels, known to the compiler; 0 for any other number.
template <int D, class S>
GSF_HD void sh_of(const ShArgs<S>& a, int64_t begin, int64_t end) {
  const int64_t C = D ? D : a.channels;
  for (int64_t view = 0; view < a.views; ++view)
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = view * a.n + i;
      S *out = a.colors + at * C, fixed[D + 1] = {}, *sum = D ? fixed : out;
      for (int64_t d = 0; d < C; ++d) sum[d] = 0;
      if (!a.masks || a.masks[at]) {
        S u[3] = {}, inv_norm = 0, Y[16];
        const int degree = math::unit(a.dirs + 3 * at, u, inv_norm) ? a.degree : 0;
        math::sh_basis(degree, u[0], u[1], u[2], Y);
        for (int k = 0; k < (degree + 1) * (degree + 1); ++k) {
          const S* c = sh_row(a, i, k);
          for (int64_t d = 0; d < C; ++d) sum[d] += Y[k] * c[d];
        }
      }
      for (int64_t d = 0; D && d < C; ++d) out[d] = sum[d];
    }
}

template <class S>
void sh(const ShArgs<S>& a, int64_t begin, int64_t end) {
  a.channels == 3 ? sh_of<3>(a, begin, end) : sh_of<0>(a, begin, end);
}

template <int D, class S>
GSF_HD void sh_backward_of(const ShArgs<S>& a, int64_t begin, int64_t end) {
  const int64_t C = D ? D : a.channels;
  for (int64_t i = begin; i < end; ++i) {
    S *v_sh0 = a.v_sh0 + i * C, *v_shN = a.v_shN + i * a.rest * C;
    // The gradients are the largest arrays around: the first view that sees the Gaussian writes, the others add.
    bool written = false;
    const auto zero_from = [&](int row) __attribute__((always_inline)) {
      for (int64_t d = 0; row == 0 && d < C; ++d) v_sh0[d] = 0;
      for (int64_t j = (row ? row - 1 : 0) * C; j < a.rest * C; ++j) v_shN[j] = 0;
    };
    for (int64_t view = 0; view < a.views; ++view) {
      const int64_t at = view * a.n + i;
      S *v_dir = a.v_dirs + 3 * at, u[3] = {}, inv_norm = 0, Y[16], s[16] = {};
      v_dir[0] = v_dir[1] = v_dir[2] = 0;
      if (a.masks && !a.masks[at]) continue;
      const bool directed = math::unit(a.dirs + 3 * at, u, inv_norm);
      const int degree = directed ? a.degree : 0, rows = (degree + 1) * (degree + 1);
      math::sh_basis(degree, u[0], u[1], u[2], Y);
      const S *given = a.v_colors + at * C, *v = given;
      S fixed[D + 1];
      if constexpr (D > 0) {
        for (int d = 0; d < D; ++d) fixed[d] = given[d];
        v = fixed;
      }
      for (int k = 0; k < rows; ++k) {
        const S* c = sh_row(a, i, k);
        S *v_c = k == 0 ? v_sh0 : v_shN + (k - 1) * C, dot = 0;
        for (int64_t d = 0; d < C; ++d) dot += c[d] * v[d];
        for (int64_t d = 0; d < C; ++d) v_c[d] = (written ? v_c[d] : S(0)) + Y[k] * v[d];
        s[k] = dot;
      }
      if (!written) zero_from(rows);
      written = true;
      if (!directed) continue;
      S v_unit[3];
      math::sh_direction_grad(degree, u[0], u[1], u[2], s, v_unit);
      math::unit_backward(u, inv_norm, v_unit, v_dir);
    }
    if (!written) zero_from(0);
  }
}

template <class S>
void sh_backward(const ShArgs<S>& a, int64_t begin, int64_t end) {
  a.channels == 3 ? sh_backward_of<3>(a, begin, end) : sh_backward_of<0>(a, begin, end);
}

}  // namespace
