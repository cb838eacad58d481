// The ops on tiles and pixels, binning, blending and structural similarity, for any backend: arguments are checked and
// outputs made here, once. A Backend is as in per_gaussian.h.
#pragma once

#include "kernel_args.h"
#include "tensors.h"

namespace gsfields {

// ---- binning -------------------------------------------------------------------------------------------------------

template <class Backend>
Two bin_tiles(const Tensor& means2d_, const Tensor& depths_, const Tensor& conics_, const Tensor& opacities_,
              const Tensor& radii_, int64_t width, int64_t height) {
  const Like like(means2d_, "means2d");
  const Tensor means2d = like(means2d_, "means2d", {{"B"}, {"N"}, {"2", 2}});
  const Dim B{"B", means2d.size(0)}, N{"N", means2d.size(1)};
  const Tensor depths = like(depths_, "depths", {B, N}), conics = like(conics_, "conics", {B, N, {"3", 3}});
  const Tensor opacities = like(opacities_, "opacities", {B, N});
  const Tensor radii = like.integers(radii_, "radii", ScalarType::Int, {B, N, {"2", 2}});
  check_image_size(width, height);
  const int64_t tiles = int64_t(tiles_along(int(width))) * tiles_along(int(height));
  const Tensor offsets = make(means2d, {B.size * tiles + 1}, ScalarType::Long);
  Tensor ids;
  with_scalar(like, [&](auto s) {
    using S = decltype(s);
    const BinInput<S> input{N.size,        B.size,           in<S>(means2d),     in<S>(depths),
                            in<S>(conics), in<S>(opacities), in<int32_t>(radii), int(width),
                            int(height)};
    Backend::bin(means2d, input, out<int64_t>(offsets), [&](int64_t pairs) {
      ids = make(means2d, {pairs}, ScalarType::Int);
      return out<int32_t>(ids);
    });
  });
  return {ids, offsets};
}

// ---- blending ------------------------------------------------------------------------------------------------------

struct Blend {
  Tensor values, means2d, conics, opacities, ids, tile_offsets;
  Optional background;
  int64_t views, n, channels, width, height, tiles;
  Like like;

  Blend(const Tensor& values_, const Tensor& means2d_, const Tensor& conics_, const Tensor& opacities_,
        const Optional& background_, const Tensor& ids_, const Tensor& tile_offsets_, int64_t width_, int64_t height_)
      : width(width_), height(height_), like(means2d_, "means2d") {
    means2d = like(means2d_, "means2d", {{"B"}, {"N"}, {"2", 2}});
    views = means2d.size(0), n = means2d.size(1);
    const Dim B{"B", views}, N{"N", n};
    conics = like(conics_, "conics", {B, N, {"3", 3}});
    opacities = like(opacities_, "opacities", {B, N});
    check(values_.dim() == 2 || values_.dim() == 3, "values has shape ", shape_string(values_),
          ", but must be [N, C] or [B, N, C] with N=", n, " and B=", views);
    values = values_.dim() == 2 ? like(values_, "values", {N, {"C"}}) : like(values_, "values", {B, N, {"C"}});
    channels = values.size(values.dim() - 1);
    check(channels >= 1, "values has 0 channels, but must have at least 1");
    if (background_) {
      const Dim C{"C", channels};
      background =
          background_->dim() == 1 ? like(*background_, "background", {C}) : like(*background_, "background", {B, C});
    }
    check_image_size(width, height);
    tiles = int64_t(tiles_along(int(width))) * tiles_along(int(height));
    ids = like.integers(ids_, "ids", ScalarType::Int, {{"I"}});
    tile_offsets = like.integers(tile_offsets_, "tile_offsets", ScalarType::Long, {{"B*tiles+1", views * tiles + 1}});
  }

  // Reads the lists, so only for tensors on the host: a wrong list would be read out of bounds. Costs a hundredth of
  // the blend. Kernels on other devices skip what this would refuse.
  void check_lists() const {
    const int64_t* offsets = in<int64_t>(tile_offsets);
    bool ordered = offsets[0] == 0 && offsets[views * tiles] == ids.size(0);
    for (int64_t t = 0; t < views * tiles; ++t) ordered &= offsets[t] <= offsets[t + 1];
    check(ordered, "tile_offsets must rise from 0 to the length of ids, which is ", ids.size(0));
    const int32_t* id = in<int32_t>(ids);
    uint32_t largest = 0;  // a negative id wraps to a large one
    for (int64_t i = 0; i < ids.size(0); ++i) largest = std::max(largest, uint32_t(id[i]));
    check(ids.size(0) == 0 || largest < n, "ids holds an index outside [0, N), N being ", n);
  }

  template <class S>
  BlendInput<S> input() const {
    BlendInput<S> a{};
    a.n = n, a.views = views, a.channels = channels, a.width = int(width), a.height = int(height);
    a.values_stride = values.dim() == 3 ? n * channels : 0;
    a.background_stride = background && background->dim() == 2 ? channels : 0;
    a.values = in<S>(values), a.means2d = in<S>(means2d), a.conics = in<S>(conics), a.opacities = in<S>(opacities);
    a.background = in<S>(background), a.ids = in<int32_t>(ids), a.pairs = ids.size(0),
    a.tile_offsets = in<int64_t>(tile_offsets);
    return a;
  }
};

template <class Backend>
Three blend(const Tensor& values, const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
            const Optional& background, const Optional& absgrad_sink, const Tensor& ids, const Tensor& tile_offsets,
            int64_t width, int64_t height) {
  const Blend b(values, means2d, conics, opacities, background, ids, tile_offsets, width, height);
  if constexpr (Backend::kOnHost) b.check_lists();
  if (absgrad_sink) b.like(*absgrad_sink, "absgrad_sink", {{"B", b.views}, {"N", b.n}, {"2", 2}});
  const Tensor image = make(b.means2d, {b.views, height, width, b.channels});
  const Tensor transmittance = make(b.means2d, {b.views, height, width});
  const Tensor last = make(b.means2d, {b.views, height, width}, ScalarType::Int);
  with_scalar(b.like, [&](auto s) {
    using S = decltype(s);
    Backend::blend(b, b.input<S>(), out<S>(image), out<S>(transmittance), out<int32_t>(last));
  });
  return {image, transmittance, last};
}

template <class Backend>
Five blend_backward(const Tensor& values, const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
                    const Optional& background, const Tensor& ids, const Tensor& tile_offsets,
                    const Tensor& transmittance_, const Tensor& last_, const Tensor& v_image_,
                    const Tensor& v_transmittance_, int64_t width, int64_t height, bool geometry, bool to_values,
                    bool absgrad) {
  const Blend b(values, means2d, conics, opacities, background, ids, tile_offsets, width, height);
  if constexpr (Backend::kOnHost) b.check_lists();
  const Dim B{"B", b.views}, H{"H", height}, W{"W", width};
  const Tensor v_image = b.like(v_image_, "v_image", {B, H, W, {"C", b.channels}});
  const Tensor v_transmittance = b.like(v_transmittance_, "v_transmittance", {B, H, W});
  const Tensor transmittance = b.like(transmittance_, "transmittance", {B, H, W});
  const Tensor last = b.like.integers(last_, "last", ScalarType::Int, {B, H, W});
  // Gradients that were not asked for are empty.
  const int64_t n = geometry ? b.n : 0, a = geometry && absgrad ? b.n : 0;
  const Tensor v_values = !to_values            ? make(b.means2d, {0})
                          : b.values.dim() == 3 ? make(b.means2d, {b.views, b.n, b.channels})
                                                : make(b.means2d, {b.n, b.channels});
  const Tensor v_means2d = make(b.means2d, {b.views, n, 2}), v_conics = make(b.means2d, {b.views, n, 3});
  const Tensor v_opacities = make(b.means2d, {b.views, n}), v_absgrad = make(b.means2d, {b.views, a, 2});
  with_scalar(b.like, [&](auto s) {
    using S = decltype(s);
    BlendGrads<S> grads{};
    grads.v_image = in<S>(v_image), grads.v_transmittance = in<S>(v_transmittance);
    if (to_values) grads.v_values = out<S>(v_values);
    if (geometry) {
      grads.v_means2d = out<S>(v_means2d), grads.v_conics = out<S>(v_conics), grads.v_opacities = out<S>(v_opacities);
      if (absgrad) grads.absgrad = out<S>(v_absgrad);
    }
    Backend::blend_backward(b, b.input<S>(), in<S>(transmittance), in<int32_t>(last), grads);
  });
  return {v_values, v_means2d, v_conics, v_opacities, v_absgrad};
}

// ---- structural similarity -----------------------------------------------------------------------------------------

struct Ssim {
  Tensor image1, image2;
  Like like;
  Ssim(const Tensor& a, const Tensor& b) : like(a, "image1") {
    image1 = like(a, "image1", {{"B"}, {"H"}, {"W"}, {"C"}});
    image2 = like(b, "image2", {{"B", a.size(0)}, {"H", a.size(1)}, {"W", a.size(2)}, {"C", a.size(3)}});
  }
  Tensor similar() const { return make(image1, {image1.size(0), image1.size(1), image1.size(2), image1.size(3)}); }
  template <class S>
  SsimArgs<S> args(const Tensor& d_mu, const Tensor& d_var, const Tensor& d_cov) const {
    SsimArgs<S> a{};
    a.height = image1.size(1), a.channels = image1.size(3), a.row = image1.size(2) * a.channels;
    a.image1 = in<S>(image1), a.image2 = in<S>(image2);
    a.d_mu = const_cast<S*>(in<S>(d_mu)), a.d_var = const_cast<S*>(in<S>(d_var)),
    a.d_cov = const_cast<S*>(in<S>(d_cov));
    return a;
  }
};

template <class Backend>
Four ssim(const Tensor& image1, const Tensor& image2) {
  const Ssim p(image1, image2);
  const Tensor map = p.similar(), d_mu = p.similar(), d_var = p.similar(), d_cov = p.similar();
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    auto a = p.args<S>(d_mu, d_var, d_cov);
    a.map = out<S>(map);
    if (map.numel()) Backend::ssim(p, a, p.image1.size(0), false);
  });
  return {map, d_mu, d_var, d_cov};
}

template <class Backend>
Tensor ssim_backward(const Tensor& image1, const Tensor& image2, const Tensor& d_mu, const Tensor& d_var,
                     const Tensor& d_cov, const Tensor& v_map_) {
  const Ssim p(image1, image2);
  const Dim B{"B", image1.size(0)}, H{"H", image1.size(1)}, W{"W", image1.size(2)}, C{"C", image1.size(3)};
  const Tensor mu = p.like(d_mu, "d_mu", {B, H, W, C}), var = p.like(d_var, "d_var", {B, H, W, C});
  const Tensor cov = p.like(d_cov, "d_cov", {B, H, W, C}), v_map = p.like(v_map_, "v_map", {B, H, W, C});
  const Tensor v_image1 = p.similar();
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    auto a = p.args<S>(mu, var, cov);
    a.v_map = in<S>(v_map), a.v_image1 = out<S>(v_image1);
    if (v_map.numel()) Backend::ssim(p, a, B.size, true);
  });
  return v_image1;
}

}  // namespace gsfields
