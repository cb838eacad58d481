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
  const Tensor radii = like.of(radii_, "radii", ScalarType::Int, {B, N, {"2", 2}});
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

// Projected Gaussians, their lists by tile, and the pixels that are wanted: all, or some sorted by tile.
struct Splats {
  Tensor means2d, conics, opacities, ids, tile_offsets;
  Optional pixels, pixel_offsets;
  int64_t views, n, width, height, tiles, precision;
  Like like;

  Splats(const Tensor& means2d_, const Tensor& conics_, const Tensor& opacities_, const Tensor& ids_,
         const Tensor& tile_offsets_, const Optional& pixels_, const Optional& pixel_offsets_, int64_t width_,
         int64_t height_, int64_t precision_)
      : width(width_), height(height_), precision(precision_), like(means2d_, "means2d") {
    means2d = like(means2d_, "means2d", {{"B"}, {"N"}, {"2", 2}});
    views = means2d.size(0), n = means2d.size(1);
    const Dim B{"B", views}, N{"N", n};
    conics = like(conics_, "conics", {B, N, {"3", 3}});
    opacities = like(opacities_, "opacities", {B, N});
    check_image_size(width, height);
    tiles = int64_t(tiles_along(int(width))) * tiles_along(int(height));
    ids = like.of(ids_, "ids", ScalarType::Int, {{"I"}});
    const Dim ends{"B*tiles+1", views * tiles + 1};
    tile_offsets = like.of(tile_offsets_, "tile_offsets", ScalarType::Long, {ends});
    check(pixels_.has_value() == pixel_offsets_.has_value(), "pixels and pixel_offsets must be given together");
    if (pixels_) {
      pixels = like.of(*pixels_, "pixels", ScalarType::Long, {{"P"}});
      pixel_offsets = like.of(*pixel_offsets_, "pixel_offsets", ScalarType::Long, {ends});
    }
    check(precision >= 0 && precision <= 2, "precision is ", precision, ", but must be 0, 1 or 2");
  }

  // The dimensions of what holds something for every pixel.
  std::vector<Dim> rows(std::initializer_list<Dim> rest = {}) const {
    std::vector<Dim> dims = {{"P", pixels ? pixels->size(0) : 0}};
    if (!pixels) dims = {{"B", views}, {"H", height}, {"W", width}};
    dims.insert(dims.end(), rest);
    return dims;
  }
  Tensor make_rows(std::initializer_list<Dim> rest = {}, std::optional<ScalarType> dtype = std::nullopt) const {
    std::vector<int64_t> shape;
    for (const Dim& d : rows(rest)) shape.push_back(d.size);
    return make(means2d, shape, dtype);
  }

  // The dtype of values and images: the geometry's, or one of half the size of float32.
  math::Storage storage(const Tensor& t, const char* name) const {
    const ScalarType dtype = t.scalar_type();
    if (dtype == ScalarType::BFloat16 && !like.is_double()) return math::Storage::kBfloat16;
    if (dtype == ScalarType::Half && !like.is_double()) return math::Storage::kFloat16;
    check(dtype == like.dtype(), name, " has dtype ", torch::headeronly::toString(dtype), ", but means2d has ",
          torch::headeronly::toString(like.dtype()), ", and both must be the same",
          like.is_double() ? "" : " (or bfloat16 or float16)");
    return math::Storage::kFull;
  }

  // Reads the lists, so only for tensors on the host: a wrong list would be read out of bounds. Costs a hundredth of
  // the blend. Kernels on other devices skip what this would refuse, and leave zeros where no pixel was listed.
  void check_lists() const {
    const auto rises = [&](const Tensor& ends, int64_t length) {
      const int64_t* at = in<int64_t>(ends);
      bool ordered = at[0] == 0 && at[views * tiles] == length;
      for (int64_t t = 0; t < views * tiles; ++t) ordered &= at[t] <= at[t + 1];
      return ordered;
    };
    check(rises(tile_offsets, ids.size(0)), "tile_offsets must rise from 0 to the length of ids, which is ",
          ids.size(0));
    const int32_t* id = in<int32_t>(ids);
    uint32_t largest = 0;  // a negative id wraps to a large one
    for (int64_t i = 0, count = ids.size(0); i < count; ++i) largest = std::max(largest, uint32_t(id[i]));
    check(ids.size(0) == 0 || largest < n, "ids holds an index outside [0, N), N being ", n);
    if (!pixels) return;
    check(rises(*pixel_offsets, pixels->size(0)), "pixel_offsets must rise from 0 to the length of pixels, which is ",
          pixels->size(0));
    const int64_t* offsets = in<int64_t>(pixel_offsets);
    for (int64_t t = 0; t < views * tiles; ++t)
      for (int64_t i = offsets[t]; i < offsets[t + 1]; ++i) {
        const int64_t pixel = in<int64_t>(pixels)[i];
        const bool inside = pixel >= 0 && pixel < views * height * width;
        check(inside && tile_of_pixel(pixel, int(width), int(height)) == t, "pixels holds ", pixel, " in the list of ",
              "tile ", t, ", where it does not lie");
      }
  }

  template <class S>
  BlendInput<S> input() const {
    BlendInput<S> a{};
    a.n = n, a.views = views, a.width = int(width), a.height = int(height), a.precision = Precision(precision);
    a.means2d = in<S>(means2d), a.conics = in<S>(conics), a.opacities = in<S>(opacities);
    a.ids = in<int32_t>(ids), a.pairs = ids.size(0), a.tile_offsets = in<int64_t>(tile_offsets);
    a.pixel_offsets = in<int64_t>(pixel_offsets);
    a.pixels = pixels && pixels->numel() == 0 ? a.pixel_offsets : in<int64_t>(pixels);  // not null: not all pixels
    a.rows = pixels ? pixels->size(0) : views * height * width;
    return a;
  }
};

// What is blended, and onto what.
struct Values {
  Tensor values;
  Optional background;
  int64_t channels;
  math::Storage storage;

  Values(const Splats& s, const Tensor& values_, const Optional& background_) {
    const Dim B{"B", s.views}, N{"N", s.n};
    check(values_.dim() == 2 || values_.dim() == 3, "values has shape ", shape_string(values_),
          ", but must be [N, C] or [B, N, C] with N=", s.n, " and B=", s.views);
    storage = s.storage(values_, "values");
    values = s.like.of(values_, "values", values_.scalar_type(),
                       values_.dim() == 2 ? std::vector<Dim>{N, {"C"}} : std::vector<Dim>{B, N, {"C"}});
    channels = values.size(values.dim() - 1);
    check(channels >= 1, "values has 0 channels, but must have at least 1");
    if (!background_) return;
    const Dim C{"C", channels};
    background =
        s.like(*background_, "background", background_->dim() == 1 ? std::vector<Dim>{C} : std::vector<Dim>{B, C});
  }

  template <class S>
  BlendInput<S> input(const Splats& s) const {
    BlendInput<S> a = s.input<S>();
    a.channels = channels, a.storage = storage, a.values = values.const_data_ptr();
    a.values_stride = values.dim() == 3 ? s.n * channels : 0;
    a.background = in<S>(background);
    a.background_stride = background && background->dim() == 2 ? channels : 0;
    return a;
  }
};

template <class Backend>
Three blend(const Tensor& values, const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
            const Optional& background, const Optional& absgrad_sink, const Tensor& ids, const Tensor& tile_offsets,
            const Optional& pixels, const Optional& pixel_offsets, int64_t width, int64_t height, int64_t precision) {
  const Splats s(means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, width, height, precision);
  const Values v(s, values, background);
  if constexpr (Backend::kOnHost) s.check_lists();
  if (absgrad_sink) s.like(*absgrad_sink, "absgrad_sink", {{"B", s.views}, {"N", s.n}, {"2", 2}});
  const Tensor image = s.make_rows({{"C", v.channels}}, v.values.scalar_type());
  const Tensor transmittance = s.make_rows(), last = s.make_rows({}, ScalarType::Int);
  with_scalar(s.like, [&](auto scalar) {
    using S = decltype(scalar);
    Backend::blend(s, v.input<S>(s), image.mutable_data_ptr(), out<S>(transmittance), out<int32_t>(last));
  });
  return {image, transmittance, last};
}

template <class Backend>
Five blend_backward(const Tensor& values, const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
                    const Optional& background, const Tensor& ids, const Tensor& tile_offsets, const Optional& pixels,
                    const Optional& pixel_offsets, const Tensor& transmittance_, const Tensor& last_,
                    const Tensor& v_image_, const Tensor& v_transmittance_, int64_t width, int64_t height,
                    int64_t precision, bool geometry, bool to_values, bool absgrad, bool deterministic) {
  const Splats s(means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, width, height, precision);
  const Values v(s, values, background);
  if constexpr (Backend::kOnHost) s.check_lists();
  const Tensor v_image = s.like.of(v_image_, "v_image", v.values.scalar_type(), s.rows({{"C", v.channels}}));
  const Tensor v_transmittance = s.like(v_transmittance_, "v_transmittance", s.rows());
  const Tensor transmittance = s.like(transmittance_, "transmittance", s.rows());
  const Tensor last = s.like.of(last_, "last", ScalarType::Int, s.rows());
  // Gradients that were not asked for are empty.
  const int64_t n = geometry ? s.n : 0, a = geometry && absgrad ? s.n : 0;
  const Tensor v_values = !to_values            ? make(s.means2d, {0})
                          : v.values.dim() == 3 ? make(s.means2d, {s.views, s.n, v.channels})
                                                : make(s.means2d, {s.n, v.channels});
  const Tensor v_means2d = make(s.means2d, {s.views, n, 2}), v_conics = make(s.means2d, {s.views, n, 3});
  const Tensor v_opacities = make(s.means2d, {s.views, n}), v_absgrad = make(s.means2d, {s.views, a, 2});
  with_scalar(s.like, [&](auto scalar) {
    using S = decltype(scalar);
    BlendGrads<S> grads{};
    grads.v_image = v_image.const_data_ptr(), grads.v_transmittance = in<S>(v_transmittance);
    grads.deterministic = deterministic;
    if (to_values) grads.v_values = out<S>(v_values);
    if (geometry) {
      grads.v_means2d = out<S>(v_means2d), grads.v_conics = out<S>(v_conics), grads.v_opacities = out<S>(v_opacities);
      if (absgrad) grads.absgrad = out<S>(v_absgrad);
    }
    Backend::blend_backward(s, v.input<S>(s), in<S>(transmittance), in<int32_t>(last), grads);
  });
  return {v_values, v_means2d, v_conics, v_opacities, v_absgrad};
}

template <class Backend>
Two lift(const Tensor& image_, const Optional& factors_, const Tensor& means2d, const Tensor& conics,
         const Tensor& opacities, const Tensor& ids, const Tensor& tile_offsets, const Optional& pixels,
         const Optional& pixel_offsets, int64_t width, int64_t height, int64_t precision, bool per_view, bool total,
         bool deterministic) {
  const Splats s(means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, width, height, precision);
  if constexpr (Backend::kOnHost) s.check_lists();
  const math::Storage storage = s.storage(image_, "image");
  const Tensor image = s.like.of(image_, "image", image_.scalar_type(), s.rows({{"C"}}));
  const int64_t channels = image.size(image.dim() - 1);
  check(channels >= 1, "image has 0 channels, but must have at least 1");
  Optional factors;
  if (factors_) factors = s.like(*factors_, "weights", s.rows());
  const int64_t totals = total ? s.n : 0;
  const Tensor sums = per_view ? make(s.means2d, {s.views, s.n, channels}) : make(s.means2d, {s.n, channels});
  const Tensor weights = per_view ? make(s.means2d, {s.views, totals}) : make(s.means2d, {totals});
  with_scalar(s.like, [&](auto scalar) {
    using S = decltype(scalar);
    BlendInput<S> input = s.input<S>();
    input.channels = channels, input.storage = storage, input.values_stride = per_view ? s.n * channels : 0;
    Backend::lift(s, input,
                  LiftArgs<S>{image.const_data_ptr(), in<S>(factors), out<S>(sums), total ? out<S>(weights) : nullptr,
                              deterministic});
  });
  return {sums, weights};
}

template <class Backend>
Tensor seen_pairs(const Tensor& means2d, const Tensor& conics, const Tensor& opacities, const Tensor& ids,
                  const Tensor& tile_offsets, const Tensor& pixels, const Tensor& pixel_offsets, int64_t width,
                  int64_t height) {
  const Splats s(means2d, conics, opacities, ids, tile_offsets, pixels, pixel_offsets, width, height, 0);
  if constexpr (Backend::kOnHost) s.check_lists();
  const Tensor seen = make(s.means2d, {s.ids.size(0)}, ScalarType::Bool);
  with_scalar(s.like, [&](auto scalar) {
    using S = decltype(scalar);
    Backend::seen_pairs(s, s.input<S>(), out<bool>(seen));
  });
  return seen;
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
