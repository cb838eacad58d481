// The ops of gsfields: schemas, argument checks and the CPU implementations, through torch's stable ABI.
// Autograd and fake kernels are registered in gsfields/ops.py.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "check.h"
#include "cpu/stages.h"
#include "math/sh.h"

namespace gsfields {

namespace {

using cpu::tiles_along;
using Optional = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

cpu::Threads torch_threads() {
  const int count = int(torch::stable::get_num_threads());
  return {count, [count](const std::function<void(int)>& f) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) f(int(i));
            });
          }};
}

template <class S>
const S* in(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
const S* in(const Optional& t) {
  return t ? in<S>(*t) : nullptr;
}
template <class S>
S* out(const Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

Tensor make(const Tensor& like, std::initializer_list<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), dtype);
}

// f(S()) with S the scalar type of the call.
template <class F>
void with_scalar(const Like& like, const F& f) {
  if (like.is_double())
    f(double());
  else
    f(float());
}

// ---- projection ----------------------------------------------------------------------------------------------------

// Checked, contiguous arguments shared by the projection and its backward pass.
struct Projection {
  Tensor means, quats, scales, opacities, viewmats, Ks;
  int64_t n, views, width, height;
  double near_plane, far_plane, eps2d;
  bool antialiased;
  Like like;

  Projection(const Tensor& means_, const Tensor& quats_, const Tensor& scales_, const Tensor& opacities_,
             const Tensor& viewmats_, const Tensor& Ks_, int64_t width_, int64_t height_, double near_, double far_,
             double eps2d_, bool antialiased_)
      : width(width_), height(height_), near_plane(near_), far_plane(far_), eps2d(eps2d_), antialiased(antialiased_),
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
    with_scalar(like, [&](auto s) { check_cameras<decltype(s)>(); });
  }

  template <class S>
  cpu::ProjectArgs<S> args() const {
    cpu::ProjectArgs<S> a{};
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

Five project(const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& opacities,
             const Tensor& viewmats, const Tensor& Ks, int64_t width, int64_t height, double near_plane,
             double far_plane, double eps2d, bool antialiased) {
  const Projection p(means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
                     antialiased);
  const Tensor means2d = make(p.means, {p.views, p.n, 2}), depths = make(p.means, {p.views, p.n});
  const Tensor conics = make(p.means, {p.views, p.n, 3}), opacities2d = make(p.means, {p.views, p.n});
  const Tensor radii = make(p.means, {p.views, p.n, 2}, ScalarType::Int);
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    auto a = p.args<S>();
    a.means2d = out<S>(means2d), a.depths = out<S>(depths), a.conics = out<S>(conics);
    a.opacities2d = out<S>(opacities2d), a.radii = out<int32_t>(radii);
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), p.n, cpu::kProjectChunk,
                         [&](int64_t begin, int64_t end) { kernel.project(a, begin, end); });
  });
  return {means2d, depths, conics, opacities2d, radii};
}

Five project_backward(const Tensor& means, const Tensor& quats, const Tensor& scales, const Tensor& opacities,
                      const Tensor& viewmats, const Tensor& Ks, const Tensor& radii_, const Tensor& v_means2d_,
                      const Tensor& v_depths_, const Tensor& v_conics_, const Tensor& v_opacities2d_, int64_t width,
                      int64_t height, double near_plane, double far_plane, double eps2d, bool antialiased) {
  const Projection p(means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, eps2d,
                     antialiased);
  const Dim B{"B", p.views}, N{"N", p.n};
  const Tensor radii = p.like.integers(radii_, "radii", ScalarType::Int, {B, N, {"2", 2}});
  const Tensor v_means2d = p.like(v_means2d_, "v_means2d", {B, N, {"2", 2}});
  const Tensor v_depths = p.like(v_depths_, "v_depths", {B, N}), v_conics = p.like(v_conics_, "v_conics", {B, N, {"3", 3}});
  const Tensor v_opacities2d = p.like(v_opacities2d_, "v_opacities2d", {B, N});
  const Tensor v_means = make(p.means, {p.n, 3}), v_quats = make(p.means, {p.n, 4});
  const Tensor v_scales = make(p.means, {p.n, 3}), v_opacities = make(p.means, {p.n});
  const Tensor v_viewmats = make(p.means, {p.views, 4, 4});
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    const int64_t chunks = (p.n + cpu::kProjectChunk - 1) / cpu::kProjectChunk;
    std::vector<S> partials(size_t(chunks * p.views * 12));
    cpu::ProjectBackwardArgs<S> a{};
    a.forward = p.args<S>();
    a.forward.radii = const_cast<int32_t*>(in<int32_t>(radii));
    a.v_means2d = in<S>(v_means2d), a.v_depths = in<S>(v_depths), a.v_conics = in<S>(v_conics);
    a.v_opacities2d = in<S>(v_opacities2d);
    a.v_means = out<S>(v_means), a.v_quats = out<S>(v_quats), a.v_scales = out<S>(v_scales);
    a.v_opacities = out<S>(v_opacities), a.v_views = partials.data();
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), p.n, cpu::kProjectChunk,
                         [&](int64_t begin, int64_t end) { kernel.project_backward(a, begin, end); });
    S* v = out<S>(v_viewmats);
    for (int64_t i = 0; i < p.views * 16; ++i) v[i] = 0;
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t b = 0; b < p.views; ++b) {
        const S* partial = partials.data() + (c * p.views + b) * 12;
        for (int i = 0; i < 3; ++i) {
          for (int j = 0; j < 3; ++j) v[16 * b + 4 * i + j] += partial[3 * i + j];
          v[16 * b + 4 * i + 3] += partial[9 + i];
        }
      }
  });
  return {v_means, v_quats, v_scales, v_opacities, v_viewmats};
}

// ---- spherical harmonics -------------------------------------------------------------------------------------------

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
    if (masks_) masks = like.integers(*masks_, "masks", ScalarType::Bool, {{"B", views}, {"N", n}});
  }
  template <class S>
  cpu::ShArgs<S> args() const {
    cpu::ShArgs<S> a{};
    a.n = n, a.views = views, a.channels = channels, a.rest = rest, a.degree = int(degree);
    a.dirs = in<S>(dirs), a.sh0 = in<S>(sh0), a.shN = in<S>(shN), a.masks = in<bool>(masks);
    a.sh0_stride = channels, a.shN_stride = rest * channels;
    return a;
  }
};

Tensor spherical_harmonics(const Tensor& dirs, const Tensor& sh0, const Tensor& shN, const Optional& masks,
                           int64_t degree) {
  const Harmonics h(dirs, sh0, shN, masks, degree);
  const Tensor colors = make(h.dirs, {h.views, h.n, h.channels});
  with_scalar(h.like, [&](auto s) {
    using S = decltype(s);
    auto a = h.args<S>();
    a.colors = out<S>(colors);
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), h.n, 256, [&](int64_t begin, int64_t end) { kernel.sh(a, begin, end); });
  });
  return colors;
}

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
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), h.n, 256,
                         [&](int64_t begin, int64_t end) { kernel.sh_backward(a, begin, end); });
  });
  return {v_dirs, v_sh0, v_shN};
}

// ---- binning -------------------------------------------------------------------------------------------------------

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
    const cpu::Threads threads = torch_threads();
    const cpu::BinInput<S> input{N.size,      B.size,           in<S>(means2d),     in<S>(depths), in<S>(conics),
                                 in<S>(opacities), in<int32_t>(radii), int(width), int(height)};
    cpu::Binning<S> binning(input, out<int64_t>(offsets), threads);
    ids = make(means2d, {binning.total()}, ScalarType::Int);
    binning.fill(out<int32_t>(ids));
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
      background = background_->dim() == 1 ? like(*background_, "background", {C})
                                           : like(*background_, "background", {B, C});
    }
    check_image_size(width, height);
    tiles = int64_t(tiles_along(int(width))) * tiles_along(int(height));
    ids = like.integers(ids_, "ids", ScalarType::Int, {{"I"}});
    tile_offsets = like.integers(tile_offsets_, "tile_offsets", ScalarType::Long, {{"B*tiles+1", views * tiles + 1}});
    check_lists();
  }

  // A wrong list would be read out of bounds; checking it costs a hundredth of the blend.
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
  cpu::BlendInput<S> input() const {
    cpu::BlendInput<S> a{};
    a.n = n, a.views = views, a.channels = channels, a.width = int(width), a.height = int(height);
    a.values_stride = values.dim() == 3 ? n * channels : 0;
    a.background_stride = background && background->dim() == 2 ? channels : 0;
    a.values = in<S>(values), a.means2d = in<S>(means2d), a.conics = in<S>(conics), a.opacities = in<S>(opacities);
    a.background = in<S>(background), a.ids = in<int32_t>(ids), a.tile_offsets = in<int64_t>(tile_offsets);
    return a;
  }
};

Three blend(const Tensor& values, const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
            const Optional& background, const Optional& absgrad_sink, const Tensor& ids, const Tensor& tile_offsets,
            int64_t width, int64_t height) {
  const Blend b(values, means2d, conics, opacities, background, ids, tile_offsets, width, height);
  if (absgrad_sink) b.like(*absgrad_sink, "absgrad_sink", {{"B", b.views}, {"N", b.n}, {"2", 2}});
  const Tensor image = make(b.means2d, {b.views, height, width, b.channels});
  const Tensor transmittance = make(b.means2d, {b.views, height, width});
  const Tensor used = make(b.means2d, {b.views * b.tiles}, ScalarType::Int);
  with_scalar(b.like, [&](auto s) {
    using S = decltype(s);
    cpu::blend(b.input<S>(), out<S>(image), out<S>(transmittance), out<int32_t>(used), torch_threads());
  });
  return {image, transmittance, used};
}

Five blend_backward(const Tensor& values, const Tensor& means2d, const Tensor& conics, const Tensor& opacities,
                    const Optional& background, const Tensor& ids, const Tensor& tile_offsets, const Tensor& used_,
                    const Tensor& v_image_, const Tensor& v_transmittance_, int64_t width, int64_t height,
                    bool geometry, bool to_values, bool absgrad) {
  const Blend b(values, means2d, conics, opacities, background, ids, tile_offsets, width, height);
  const Dim B{"B", b.views}, H{"H", height}, W{"W", width};
  const Tensor v_image = b.like(v_image_, "v_image", {B, H, W, {"C", b.channels}});
  const Tensor v_transmittance = b.like(v_transmittance_, "v_transmittance", {B, H, W});
  const Tensor used = b.like.integers(used_, "used", ScalarType::Int, {{"B*tiles", b.views * b.tiles}});
  const int64_t* offsets = in<int64_t>(b.tile_offsets);
  for (int64_t t = 0; t < b.views * b.tiles; ++t) {
    const int64_t u = in<int32_t>(used)[t];
    check(u >= 0 && u <= offsets[t + 1] - offsets[t], "used[", t, "] is ", u, ", but the tile lists ",
          offsets[t + 1] - offsets[t], " Gaussians");
  }
  // Gradients that were not asked for are empty.
  const int64_t n = geometry ? b.n : 0, a = geometry && absgrad ? b.n : 0;
  const Tensor v_values = !to_values               ? make(b.means2d, {0})
                          : b.values.dim() == 3 ? make(b.means2d, {b.views, b.n, b.channels})
                                                : make(b.means2d, {b.n, b.channels});
  const Tensor v_means2d = make(b.means2d, {b.views, n, 2}), v_conics = make(b.means2d, {b.views, n, 3});
  const Tensor v_opacities = make(b.means2d, {b.views, n}), v_absgrad = make(b.means2d, {b.views, a, 2});
  with_scalar(b.like, [&](auto s) {
    using S = decltype(s);
    cpu::BlendGrads<S> grads{};
    grads.v_image = in<S>(v_image), grads.v_transmittance = in<S>(v_transmittance);
    if (to_values) grads.v_values = out<S>(v_values);
    if (geometry) {
      grads.v_means2d = out<S>(v_means2d), grads.v_conics = out<S>(v_conics), grads.v_opacities = out<S>(v_opacities);
      if (absgrad) grads.absgrad = out<S>(v_absgrad);
    }
    cpu::blend_backward(b.input<S>(), in<int32_t>(used), grads, torch_threads());
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
  Tensor similar() const {
    return make(image1, {image1.size(0), image1.size(1), image1.size(2), image1.size(3)});
  }
  template <class S>
  cpu::SsimArgs<S> args(const Tensor& d_mu, const Tensor& d_var, const Tensor& d_cov) const {
    cpu::SsimArgs<S> a{};
    a.height = image1.size(1), a.channels = image1.size(3), a.row = image1.size(2) * a.channels;
    a.image1 = in<S>(image1), a.image2 = in<S>(image2);
    a.d_mu = const_cast<S*>(in<S>(d_mu)), a.d_var = const_cast<S*>(in<S>(d_var)), a.d_cov = const_cast<S*>(in<S>(d_cov));
    return a;
  }
};

Four ssim(const Tensor& image1, const Tensor& image2) {
  const Ssim p(image1, image2);
  const Tensor map = p.similar(), d_mu = p.similar(), d_var = p.similar(), d_cov = p.similar();
  with_scalar(p.like, [&](auto s) {
    using S = decltype(s);
    auto a = p.args<S>(d_mu, d_var, d_cov);
    a.map = out<S>(map);
    if (map.numel()) cpu::ssim(a, p.image1.size(0), false, torch_threads());
  });
  return {map, d_mu, d_var, d_cov};
}

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
    if (v_map.numel()) cpu::ssim(a, B.size, true, torch_threads());
  });
  return v_image1;
}

// ---- instruction sets ----------------------------------------------------------------------------------------------

int64_t cpu_isa() { return int64_t(cpu::current_isa()); }

bool cpu_isa_available(int64_t isa) { return isa >= 0 && isa <= 2 && cpu::isa_available(cpu::Isa(isa)); }

void set_cpu_isa(int64_t isa) {
  check(cpu_isa_available(isa), "isa is ", isa, ", but must be an instruction set that this CPU has");
  cpu::set_isa(cpu::Isa(isa));
}

}  // namespace
}  // namespace gsfields

STABLE_TORCH_LIBRARY(gsfields, m) {
  m.def(
      "project(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor viewmats, Tensor Ks, int width, "
      "int height, float near, float far, float eps2d, bool antialiased) -> "
      "(Tensor means2d, Tensor depths, Tensor conics, Tensor opacities2d, Tensor radii)");
  m.def(
      "project_backward(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor viewmats, Tensor Ks, "
      "Tensor radii, Tensor v_means2d, Tensor v_depths, Tensor v_conics, Tensor v_opacities2d, int width, int height, "
      "float near, float far, float eps2d, bool antialiased) -> "
      "(Tensor v_means, Tensor v_quats, Tensor v_scales, Tensor v_opacities, Tensor v_viewmats)");
  m.def("spherical_harmonics(Tensor dirs, Tensor sh0, Tensor shN, Tensor? masks, int degree) -> Tensor");
  m.def(
      "spherical_harmonics_backward(Tensor dirs, Tensor sh0, Tensor shN, Tensor? masks, int degree, Tensor v_colors) "
      "-> (Tensor v_dirs, Tensor v_sh0, Tensor v_shN)");
  m.def(
      "bin_tiles(Tensor means2d, Tensor depths, Tensor conics, Tensor opacities, Tensor radii, int width, int height) "
      "-> (Tensor ids, Tensor tile_offsets)");
  m.def(
      "blend(Tensor values, Tensor means2d, Tensor conics, Tensor opacities, Tensor? background, "
      "Tensor? absgrad_sink, Tensor ids, Tensor tile_offsets, int width, int height) -> "
      "(Tensor image, Tensor transmittance, Tensor used)");
  m.def(
      "blend_backward(Tensor values, Tensor means2d, Tensor conics, Tensor opacities, Tensor? background, Tensor ids, "
      "Tensor tile_offsets, Tensor used, Tensor v_image, Tensor v_transmittance, int width, int height, "
      "bool geometry, bool to_values, bool absgrad) -> "
      "(Tensor v_values, Tensor v_means2d, Tensor v_conics, Tensor v_opacities, Tensor v_absgrad)");
  m.def("ssim(Tensor image1, Tensor image2) -> (Tensor map, Tensor d_mu, Tensor d_var, Tensor d_cov)");
  m.def(
      "ssim_backward(Tensor image1, Tensor image2, Tensor d_mu, Tensor d_var, Tensor d_cov, Tensor v_map) -> Tensor");
  m.def("cpu_isa() -> int");
  m.def("cpu_isa_available(int isa) -> bool");
  m.def("set_cpu_isa(int isa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gsfields, CPU, m) {
  m.impl("project", TORCH_BOX(&gsfields::project));
  m.impl("project_backward", TORCH_BOX(&gsfields::project_backward));
  m.impl("spherical_harmonics", TORCH_BOX(&gsfields::spherical_harmonics));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&gsfields::spherical_harmonics_backward));
  m.impl("bin_tiles", TORCH_BOX(&gsfields::bin_tiles));
  m.impl("blend", TORCH_BOX(&gsfields::blend));
  m.impl("blend_backward", TORCH_BOX(&gsfields::blend_backward));
  m.impl("ssim", TORCH_BOX(&gsfields::ssim));
  m.impl("ssim_backward", TORCH_BOX(&gsfields::ssim_backward));
}

STABLE_TORCH_LIBRARY_IMPL(gsfields, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&gsfields::cpu_isa));
  m.impl("cpu_isa_available", TORCH_BOX(&gsfields::cpu_isa_available));
  m.impl("set_cpu_isa", TORCH_BOX(&gsfields::set_cpu_isa));
}
