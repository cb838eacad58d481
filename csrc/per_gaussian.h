// The ops on single Gaussians, projection and spherical harmonics, for any backend: arguments are checked and outputs
// made here, once. A Backend has a function for each op, which runs its kernel, and tells whether it works on the host.
#pragma once

#include <cmath>

#include "kernel_args.h"
#include "math/respond.h"
#include "math/sh.h"
#include "tensors.h"

namespace gsfields {

// ---- projection ----------------------------------------------------------------------------------------------------

// Checked, contiguous arguments of the projection and its backward pass.
struct Projection {
  Tensor means, quats, scales, opacities, viewmats, Ks;
  int64_t n, views, width, height;
  double near_plane, far_plane, eps2d;
  bool antialiased;
  Like like;

  Projection(const Tensor& means_, const Tensor& quats_, const Tensor& scales_, const Tensor& opacities_,
             const Tensor& viewmats_, const Tensor& Ks_, int64_t width_, int64_t height_, double near_, double far_,
             double eps2d_, bool antialiased_)
      : width(width_),
        height(height_),
        near_plane(near_),
        far_plane(far_),
        eps2d(eps2d_),
        antialiased(antialiased_),
        like(means_, "means") {
    means = like(means_, "means", {{"N"}, {"3", 3}});
    n = means.size(0);
    check(n <= kMaxGaussians, "means holds ", n, " Gaussians, but at most ", kMaxGaussians, " are allowed");
    quats = like(quats_, "quats", {{"N", n}, {"4", 4}});
    scales = like(scales_, "scales", {{"N", n}, {"3", 3}});
    opacities = like(opacities_, "opacities", {{"N", n}});
    viewmats = like(viewmats_, "viewmats", {{"B"}, {"4", 4}, {"4", 4}});
    views = viewmats.size(0);
    Ks = like(Ks_, "Ks", {{"B", views}, {"3", 3}, {"3", 3}});
    check_image_size(width, height);
    check(near_plane < far_plane, "near is ", near_plane, " and far is ", far_plane, ", but near must be below far");
    check(near_plane > 0, "near is ", near_plane, ", but must be above 0");
    check(eps2d >= 0 && std::isfinite(eps2d), "eps2d is ", eps2d, ", but must be finite and not negative");
  }

  // Reads the cameras, so only for tensors on the host. On other devices the kernels draw nothing in a view that this
  // would refuse: math::usable_camera().
  void check_cameras() const {
    with_scalar(like, [&](auto s) { check_cameras<decltype(s)>(); });
  }

  template <class S>
  ProjectArgs<S> args() const {
    ProjectArgs<S> a{};
    a.n = n, a.views = views;
    a.means = in<S>(means), a.quats = in<S>(quats), a.scales = in<S>(scales), a.opacities = in<S>(opacities);
    a.viewmats = in<S>(viewmats), a.Ks = in<S>(Ks), a.width = int(width), a.height = int(height);
    a.near_plane = S(near_plane), a.far_plane = S(far_plane), a.eps2d = S(eps2d), a.antialiased = antialiased;
    return a;
  }

 private:
  template <class S>
  void check_cameras() const {
    const S *K = in<S>(Ks), *view = in<S>(viewmats);
    for (int64_t b = 0; b < views; ++b, K += 9, view += 16) {
      for (int i = 0; i < 16; ++i)
        check(std::isfinite(view[i]), "viewmats[", b, "] holds ", view[i], ", but must be finite");
      for (int i = 0; i < 9; ++i) check(std::isfinite(K[i]), "Ks[", b, "] holds ", K[i], ", but must be finite");
      check(K[0] > 0 && K[4] > 0, "Ks[", b, "] has focal lengths ", K[0], " and ", K[4], ", but they must be positive");
      check(K[1] == 0 && K[3] == 0, "Ks[", b, "] has skew, which is not supported: K[0,1] and K[1,0] must be 0");
    }
  }
};

template <class Backend>
Five project(const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& opacities,
             const Tensor& viewmats, const Tensor& Ks, int64_t width, int64_t height, double near_plane,
             double far_plane, double eps2d, bool antialiased) {
  const Projection p(means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
                     antialiased);
  if constexpr (Backend::kOnHost) p.check_cameras();
  const Tensor means2d = make(p.means, {p.views, p.n, 2}), depths = make(p.means, {p.views, p.n});
  const Tensor conics = make(p.means, {p.views, p.n, 3}), opacities2d = make(p.means, {p.views, p.n});
  const Tensor radii = make(p.means, {p.views, p.n, 2}, ScalarType::Int);
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    auto a = p.args<S>();
    a.means2d = out<S>(means2d), a.depths = out<S>(depths), a.conics = out<S>(conics);
    a.opacities2d = out<S>(opacities2d), a.radii = out<int32_t>(radii);
    Backend::project(p, a);
  });
  return {means2d, depths, conics, opacities2d, radii};
}

template <class Backend>
Five project_backward(const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& opacities,
                      const Tensor& viewmats, const Tensor& Ks, const Tensor& radii_, const Tensor& v_means2d_,
                      const Tensor& v_depths_, const Tensor& v_conics_, const Tensor& v_opacities2d_, int64_t width,
                      int64_t height, double near_plane, double far_plane, double eps2d, bool antialiased,
                      bool to_viewmats) {
  const Projection p(means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
                     antialiased);
  if constexpr (Backend::kOnHost) p.check_cameras();
  const Dim B{"B", p.views}, N{"N", p.n};
  const Tensor radii = p.like.of(radii_, "radii", ScalarType::Int, {B, N, {"2", 2}});
  const Tensor v_means2d = p.like(v_means2d_, "v_means2d", {B, N, {"2", 2}});
  const Tensor v_depths = p.like(v_depths_, "v_depths", {B, N});
  const Tensor v_conics = p.like(v_conics_, "v_conics", {B, N, {"3", 3}});
  const Tensor v_opacities2d = p.like(v_opacities2d_, "v_opacities2d", {B, N});
  const Tensor v_means = make(p.means, {p.n, 3}), v_quats = make(p.means, {p.n, 4});
  const Tensor v_scales = make(p.means, {p.n, 3}), v_opacities = make(p.means, {p.n});
  const int64_t views = to_viewmats ? p.views : 0;  // gradients that were not asked for are empty
  const Tensor v_viewmats = make(p.means, {views, 4, 4});
  const Tensor v_views = make(p.means, {Backend::projection_parts(p.n), views, 12});
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    ProjectBackwardArgs<S> a{};
    a.forward = p.args<S>();
    a.forward.radii = const_cast<int32_t*>(in<int32_t>(radii));
    a.v_means2d = in<S>(v_means2d), a.v_depths = in<S>(v_depths), a.v_conics = in<S>(v_conics);
    a.v_opacities2d = in<S>(v_opacities2d);
    a.v_means = out<S>(v_means), a.v_quats = out<S>(v_quats), a.v_scales = out<S>(v_scales);
    a.v_opacities = out<S>(v_opacities), a.v_views = to_viewmats ? out<S>(v_views) : nullptr;
    Backend::project_backward(p, a, to_viewmats ? out<S>(v_viewmats) : nullptr);
  });
  return {v_means, v_quats, v_scales, v_opacities, v_viewmats};
}

// ---- spherical harmonics -------------------------------------------------------------------------------------------

// Checked, contiguous arguments of the spherical harmonics and their backward pass.
struct Harmonics {
  Tensor dirs, sh0, shN;
  Optional masks;
  int64_t views, n, channels, rest, degree;
  Like like;

  Harmonics(const Tensor& dirs_, const Tensor& sh0_, const Tensor& shN_, const Optional& masks_, int64_t degree_)
      : degree(degree_), like(dirs_, "dirs") {
    check(degree >= 0 && degree <= math::kMaxShDegree, "degree is ", degree, ", but must be 0, 1, 2 or 3");
    dirs = like(dirs_, "dirs", {{"B"}, {"N"}, {"3", 3}});
    views = dirs.size(0), n = dirs.size(1);
    check_shape(sh0_, "sh0", {{"N", n}, {"1", 1}, {"D"}});
    channels = sh0_.size(2);
    sh0 = like(sh0_, "sh0", {{"N", n}, {"1", 1}, {"D"}});
    shN = like(shN_, "shN", {{"N", n}, {"K-1"}, {"D", channels}});
    rest = shN.size(1);
    check(rest + 1 >= (degree + 1) * (degree + 1), "shN has ", rest, " coefficients per Gaussian, but degree ", degree,
          " needs ", (degree + 1) * (degree + 1) - 1);
    if (masks_) masks = like.of(*masks_, "masks", ScalarType::Bool, {{"B", views}, {"N", n}});
  }
  template <class S>
  ShArgs<S> args() const {
    ShArgs<S> a{};
    a.n = n, a.views = views, a.channels = channels, a.rest = rest, a.degree = int(degree);
    a.dirs = in<S>(dirs), a.sh0 = in<S>(sh0), a.shN = in<S>(shN), a.masks = in<bool>(masks);
    a.sh0_stride = channels, a.shN_stride = rest * channels;
    return a;
  }
};

template <class Backend>
Tensor spherical_harmonics(const Tensor& dirs, const Tensor& sh0, const Tensor& shN, const Optional& masks,
                           int64_t degree) {
  const Harmonics h(dirs, sh0, shN, masks, degree);
  const Tensor colors = make(h.dirs, {h.views, h.n, h.channels});
  with_scalar(h.like, [&](auto s) {
    using S = decltype(s);
    auto a = h.args<S>();
    a.colors = out<S>(colors);
    Backend::sh(h, a);
  });
  return colors;
}

template <class Backend>
Three spherical_harmonics_backward(const Tensor& dirs, const Tensor& sh0, const Tensor& shN, const Optional& masks,
                                   int64_t degree, const Tensor& v_colors_) {
  const Harmonics h(dirs, sh0, shN, masks, degree);
  const Tensor v_colors = h.like(v_colors_, "v_colors", {{"B", h.views}, {"N", h.n}, {"D", h.channels}});
  const Tensor v_dirs = make(h.dirs, {h.views, h.n, 3}), v_sh0 = make(h.dirs, {h.n, 1, h.channels});
  const Tensor v_shN = make(h.dirs, {h.n, h.rest, h.channels});
  with_scalar(h.like, [&](auto s) {
    using S = decltype(s);
    auto a = h.args<S>();
    a.v_colors = in<S>(v_colors), a.v_dirs = out<S>(v_dirs), a.v_sh0 = out<S>(v_sh0), a.v_shN = out<S>(v_shN);
    Backend::sh_backward(h, a);
  });
  return {v_dirs, v_sh0, v_shN};
}

// ---- motion --------------------------------------------------------------------------------------------------------

// Checked, contiguous arguments of moving Gaussians that the response and its backward pass share.
struct Motion {
  Tensor response, code, windows, time;
  Optional pose;
  int64_t n, rank;
  double softness;
  Like like;

  Motion(const Tensor& response_, const Tensor& code_, const Tensor& windows_, const Optional& pose_,
         const Tensor& time_, double softness_)
      : softness(softness_), like(response_, "response") {
    response = like(response_, "response", {{"N"}, {"7", math::kResponses}, {"D"}});
    n = response.size(0), rank = response.size(2);
    check(n <= kMaxGaussians, "response holds ", n, " Gaussians, but at most ", kMaxGaussians, " are allowed");
    code = like(code_, "code", {{"D", rank}});
    windows = like(windows_, "windows", {{"N", n}, {"2", 2}});
    if (pose_) pose = like(*pose_, "pose", {{"7", 7}});
    time = like(time_, "time", {});
    check(softness > 0 && std::isfinite(softness), "softness is ", softness, ", but must be finite and above 0");
  }

  // Reads time and pose, so only for tensors on the host. On other devices nothing lives at a time that is not finite.
  void check_moment() const {
    with_scalar(like, [&](auto s) {
      const auto t = *in<decltype(s)>(time);
      check(std::isfinite(t), "time is ", t, ", but must be finite");
      if (!pose) return;
      const auto* p = in<decltype(s)>(*pose);
      for (int k = 0; k < 7; ++k) check(std::isfinite(p[k]), "pose holds ", p[k], ", but must be finite");
      const double norm = std::sqrt(double(p[0] * p[0] + p[1] * p[1] + p[2] * p[2] + p[3] * p[3]));
      check(std::abs(norm - 1) < 1e-3, "pose has a quaternion of length ", norm, ", but it must be 1");
    });
  }

  template <class S>
  RespondArgs<S> args() const {
    RespondArgs<S> a{};
    a.n = n, a.rank = rank, a.time = in<S>(time), a.softness = S(softness);
    a.response = in<S>(response), a.code = in<S>(code), a.windows = in<S>(windows), a.pose = in<S>(pose);
    return a;
  }
};

template <class Backend>
Four respond(const Tensor& means_, const Tensor& quats_, const Tensor& logits_, const Tensor& colors_,
             const Tensor& response, const Tensor& code, const Tensor& windows, const Optional& pose,
             const Tensor& time, double softness) {
  const Motion m(response, code, windows, pose, time, softness);
  if constexpr (Backend::kOnHost) m.check_moment();
  const Dim N{"N", m.n};
  const Tensor means = m.like(means_, "means", {N, {"3", 3}}), quats = m.like(quats_, "quats", {N, {"4", 4}});
  const Tensor logits = m.like(logits_, "logits", {N}), colors = m.like(colors_, "colors", {N, {"3", 3}});
  const Tensor means_t = make(means, {m.n, 3}), quats_t = make(means, {m.n, 4});
  const Tensor opacities_t = make(means, {m.n}), colors_t = make(means, {m.n, 3});
  with_scalar(m.like, [&](auto s) {
    using S = decltype(s);
    auto a = m.args<S>();
    a.means = in<S>(means), a.quats = in<S>(quats), a.logits = in<S>(logits), a.colors = in<S>(colors);
    a.means_t = out<S>(means_t), a.quats_t = out<S>(quats_t);
    a.opacities_t = out<S>(opacities_t), a.colors_t = out<S>(colors_t);
    Backend::respond(m, a);
  });
  return {means_t, quats_t, opacities_t, colors_t};
}

template <class Backend>
Seven respond_backward(const Tensor& response, const Tensor& code, const Tensor& windows, const Optional& pose,
                       const Tensor& time, const Tensor& opacities_t_, const Tensor& colors_t_,
                       const Tensor& v_means_t_, const Tensor& v_quats_t_, const Tensor& v_opacities_t_,
                       const Tensor& v_colors_t_, double softness, bool to_response, bool to_code) {
  const Motion m(response, code, windows, pose, time, softness);
  if constexpr (Backend::kOnHost) m.check_moment();
  const Dim N{"N", m.n};
  const Tensor opacities_t = m.like(opacities_t_, "opacities_t", {N});
  const Tensor colors_t = m.like(colors_t_, "colors_t", {N, {"3", 3}});
  const Tensor v_means_t = m.like(v_means_t_, "v_means_t", {N, {"3", 3}});
  const Tensor v_quats_t = m.like(v_quats_t_, "v_quats_t", {N, {"4", 4}});
  const Tensor v_opacities_t = m.like(v_opacities_t_, "v_opacities_t", {N});
  const Tensor v_colors_t = m.like(v_colors_t_, "v_colors_t", {N, {"3", 3}});
  const Tensor v_means = make(m.code, {m.n, 3}), v_quats = make(m.code, {m.n, 4}), v_logits = make(m.code, {m.n});
  const Tensor v_colors = make(m.code, {m.n, 3}), v_windows = make(m.code, {m.n, 2});
  // Gradients that were not asked for are empty.
  const Tensor v_response = make(m.code, {to_response ? m.n : 0, math::kResponses, m.rank});
  const Tensor v_code = make(m.code, {to_code ? m.rank : 0});
  const Tensor v_codes = make(m.code, {to_code ? Backend::response_parts(m.n) : 0, m.rank});
  with_scalar(m.like, [&](auto s) {
    using S = decltype(s);
    RespondBackwardArgs<S> a{};
    a.forward = m.args<S>();
    a.forward.opacities_t = const_cast<S*>(in<S>(opacities_t));
    a.forward.colors_t = const_cast<S*>(in<S>(colors_t));
    a.v_means_t = in<S>(v_means_t), a.v_quats_t = in<S>(v_quats_t);
    a.v_opacities_t = in<S>(v_opacities_t), a.v_colors_t = in<S>(v_colors_t);
    a.v_means = out<S>(v_means), a.v_quats = out<S>(v_quats), a.v_logits = out<S>(v_logits);
    a.v_colors = out<S>(v_colors), a.v_windows = out<S>(v_windows);
    a.v_response = to_response ? out<S>(v_response) : nullptr, a.v_codes = to_code ? out<S>(v_codes) : nullptr;
    Backend::respond_backward(m, a, to_code ? out<S>(v_code) : nullptr);
  });
  return {v_means, v_quats, v_logits, v_colors, v_response, v_code, v_windows};
}

}  // namespace gsfields
