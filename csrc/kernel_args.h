// What the per-Gaussian kernels take, on either backend: sizes and raw pointers to contiguous arrays.
#pragma once

#include <cstdint>

namespace gsfields {

template <class S>
struct ProjectArgs {
  int64_t n, views;
  const S *means, *quats, *scales, *opacities;  // [N,3] [N,4] [N,3] [N]
  const S *viewmats, *Ks;                       // [B,4,4] [B,3,3]
  int width, height;
  S near_plane, far_plane, eps2d;
  bool antialiased;
  S *means2d, *depths, *conics, *opacities2d;  // [B,N,2] [B,N] [B,N,3] [B,N]
  int32_t* radii;                              // [B,N,2]
};

template <class S>
struct ProjectBackwardArgs {
  ProjectArgs<S> forward;  // outputs unused except radii, which tell what was visible
  const S *v_means2d, *v_depths, *v_conics, *v_opacities2d;
  S *v_means, *v_quats, *v_scales, *v_opacities;  // as the inputs, summed over views
  S* v_views;  // sums over parts of the Gaussians of the gradients of viewmats [parts, B, 12], or null
};

template <class S>
struct ShArgs {
  int64_t n, views, channels, rest;  // rest: coefficients per Gaussian beyond the first
  int degree;
  const S* dirs;                   // [B,N,3]
  const S *sh0, *shN;              // rows of [1,D] and [rest,D]
  int64_t sh0_stride, shN_stride;  // elements between rows
  const bool* masks;               // [B,N] or null
  S* colors;                       // [B,N,D]
  const S* v_colors;               // backward
  S *v_dirs, *v_sh0, *v_shN;       // [B,N,3] [N,1,D] [N,rest,D]
};

}  // namespace gsfields
