// Random scenes for the C++ tests, and one's way through every stage of the CPU kernels, forward and backward.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/stages.h"

namespace gsfields::cpu {

// An exact-size heap array (never null, also when empty) that starts as garbage: every byte 0xEE.
template <class T>
class Array {
 public:
  explicit Array(int64_t n) : n_(n), data_(new T[size_t(n)]) {
    if (n) std::memset(static_cast<void*>(data_.get()), 0xEE, size_t(n) * sizeof(T));
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[size_t(i)]; }
  int64_t size() const { return n_; }
  T* begin() const { return get(); }
  T* end() const { return get() + n_; }

 private:
  int64_t n_;
  std::unique_ptr<T[]> data_;
};

struct Random {
  std::mt19937_64 engine;
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine); }
  double normal() { return std::normal_distribution<double>()(engine); }
  template <class T>
  void fill(const Array<T>& a, double low, double high) {
    for (T& x : a) x = T(uniform(low, high));
  }
};

template <class T>
bool all_finite(const Array<T>& a) {
  return std::all_of(a.begin(), a.end(), [](T x) { return std::isfinite(x); });
}

// The largest difference relative to the largest expected magnitude.
template <class S>
double error(const Array<S>& actual, const Array<double>& expected) {
  double worst = 0, scale = 1e-30;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double difference = std::abs(double(actual[i]) - expected[i]);
    worst = std::isnan(difference) ? difference : std::max(worst, difference);
    if (std::isnan(worst)) return worst;
    scale = std::max(scale, std::abs(expected[i]));
  }
  return worst / scale;
}

inline Threads threads(int count) {
  return {count, [count](const std::function<void(int)>& f) {
            std::vector<std::thread> others;
            for (int i = 1; i < count; ++i) others.emplace_back(f, i);
            f(0);
            for (auto& t : others) t.join();
          }};
}

// ---------------------------------------------------------------------------------------------- a scene and its run

struct Size {
  int64_t n, views, channels;
  int width, height;
  std::string name() const {
    return std::to_string(n) + " Gaussians, " + std::to_string(views) + " views of " + std::to_string(width) + "x" +
           std::to_string(height) + ", " + std::to_string(channels) + " channels";
  }
};

template <class S>
struct Scene {
  Size size;
  Array<S> means, quats, scales, opacities, viewmats, Ks, values, background;

  Scene(const Size& s, uint64_t seed)
      : size(s),
        means(3 * s.n),
        quats(4 * s.n),
        scales(3 * s.n),
        opacities(s.n),
        viewmats(16 * s.views),
        Ks(9 * s.views),
        values(s.n * s.channels),
        background(s.views * s.channels) {
    Random rng{std::mt19937_64(seed)};
    for (int64_t i = 0; i < s.n; ++i) {
      const double depth = rng.uniform(i % 30 ? 1 : -3, 6);  // some behind the camera
      means[3 * i] = S(rng.uniform(-0.7, 0.7) * depth), means[3 * i + 1] = S(rng.uniform(-0.7, 0.7) * depth);
      means[3 * i + 2] = S(depth);
      for (int k = 0; k < 4; ++k) quats[4 * i + k] = S(rng.normal());
      for (int k = 0; k < 3; ++k) scales[3 * i + k] = S(0.1 * std::exp(rng.normal()));
    }
    rng.fill(opacities, 0.002, 1.05);  // a few too faint, a few beyond the clamp
    rng.fill(values, -1, 1), rng.fill(background, -1, 1);
    std::fill(viewmats.begin(), viewmats.end(), S(0)), std::fill(Ks.begin(), Ks.end(), S(0));
    for (int64_t b = 0; b < s.views; ++b) {
      S *v = &viewmats[16 * b], *K = &Ks[9 * b];
      const double angle = rng.uniform(-0.2, 0.2);
      v[0] = v[10] = S(std::cos(angle)), v[2] = S(std::sin(angle)), v[8] = -v[2], v[5] = v[15] = 1;
      v[3] = S(rng.uniform(-0.3, 0.3)), v[7] = S(rng.uniform(-0.3, 0.3));
      K[0] = K[4] = S(s.width), K[2] = S(s.width * 0.55), K[5] = S(s.height * 0.45), K[8] = 1;
    }
  }
};

// Everything the forward pass makes.
template <class S>
struct Forward {
  Array<S> means2d, depths, conics, opacities2d;
  Array<int32_t> radii;
  Array<int64_t> offsets;
  std::unique_ptr<Array<int32_t>> ids;
  Array<S> image, transmittance;
  Array<int32_t> last;

  explicit Forward(const Size& s)
      : means2d(2 * s.n * s.views),
        depths(s.n * s.views),
        conics(3 * s.n * s.views),
        opacities2d(s.n * s.views),
        radii(2 * s.n * s.views),
        offsets(tiles(s) + 1),
        image(s.views * s.height * s.width * s.channels),
        transmittance(s.views * s.height * s.width),
        last(s.views * s.height * s.width) {}

  static int64_t tiles(const Size& s) { return s.views * tiles_along(s.width) * tiles_along(s.height); }
};

template <class S>
ProjectArgs<S> project_args(const Scene<S>& scene, const Forward<S>& out) {
  const Size& s = scene.size;
  return {s.n,
          s.views,
          scene.means.get(),
          scene.quats.get(),
          scene.scales.get(),
          scene.opacities.get(),
          scene.viewmats.get(),
          scene.Ks.get(),
          s.width,
          s.height,
          S(0.01),
          S(1e10),
          S(0.3),
          s.n % 2 == 1,
          out.means2d.get(),
          out.depths.get(),
          out.conics.get(),
          out.opacities2d.get(),
          out.radii.get()};
}

template <class S>
void project(const Scene<S>& scene, const Forward<S>& out) {
  const ProjectArgs<S> args = project_args(scene, out);
  // In ragged ranges, as threads may cut them.
  for (int64_t begin = 0, step = 1; begin < args.n; begin += step, step = 3 * step + 5)
    kernels().of<S>().project(args, begin, std::min(begin + step, args.n));
}

template <class S>
void bin(const Size& s, Forward<S>& out, const Threads& workers) {
  Binning<S> binning({s.n, s.views, out.means2d.get(), out.depths.get(), out.conics.get(), out.opacities2d.get(),
                      out.radii.get(), s.width, s.height},
                     out.offsets.get(), workers);
  out.ids = std::make_unique<Array<int32_t>>(binning.total());
  binning.fill(out.ids->get());
}

template <class S>
BlendInput<S> blend_input(const Scene<S>& scene, const Forward<S>& f) {
  const Size& s = scene.size;
  BlendInput<S> in{};
  in.n = s.n, in.views = s.views, in.channels = s.channels, in.background_stride = s.channels;
  in.values = scene.values.get(), in.background = scene.background.get();
  in.means2d = f.means2d.get(), in.conics = f.conics.get(), in.opacities = f.opacities2d.get();
  in.ids = f.ids->get(), in.pairs = f.offsets.get()[Forward<S>::tiles(s)], in.tile_offsets = f.offsets.get();
  in.width = s.width, in.height = s.height, in.rows = s.views * s.width * s.height;
  return in;
}

template <class S>
Forward<S> forward(const Scene<S>& scene, const Threads& workers) {
  Forward<S> out(scene.size);
  project(scene, out);
  bin(scene.size, out, workers);
  blend(blend_input(scene, out), out.image.get(), out.transmittance.get(), out.last.get(), workers);
  return out;
}

// Gradients of <image, cotangent> + <transmittance, cotangent> down to the scene.
template <class S>
struct Backward {
  Array<S> v_image, v_transmittance, v_values, v_means2d, v_conics, v_opacities2d, absgrad, v_depths;
  Array<S> v_means, v_quats, v_scales, v_opacities, v_views;

  Backward(const Scene<S>& scene, const Forward<S>& f, const Threads& workers)
      : v_image(f.image.size()),
        v_transmittance(f.transmittance.size()),
        v_values(scene.values.size()),
        v_means2d(f.means2d.size()),
        v_conics(f.conics.size()),
        v_opacities2d(f.opacities2d.size()),
        absgrad(f.means2d.size()),
        v_depths(f.depths.size()),
        v_means(scene.means.size()),
        v_quats(scene.quats.size()),
        v_scales(scene.scales.size()),
        v_opacities(scene.opacities.size()),
        v_views((scene.size.n + kProjectChunk - 1) / kProjectChunk * scene.size.views * 12) {
    Random rng{std::mt19937_64(9)};
    rng.fill(v_image, -1, 1), rng.fill(v_transmittance, -1, 1), rng.fill(v_depths, -1, 1);
    blend_backward(blend_input(scene, f), used_lists(blend_input(scene, f), f.last.get()).data(),
                   {v_image.get(), v_transmittance.get(), v_values.get(), v_means2d.get(), v_conics.get(),
                    v_opacities2d.get(), absgrad.get(), true},
                   workers);
    const ProjectBackwardArgs<S> args{project_args(scene, f), v_means2d.get(), v_depths.get(), v_conics.get(),
                                      v_opacities2d.get(),    v_means.get(),   v_quats.get(),  v_scales.get(),
                                      v_opacities.get(),      v_views.get()};
    for (int64_t begin = 0; begin < scene.size.n; begin += kProjectChunk)
      kernels().of<S>().project_backward(args, begin, std::min(begin + kProjectChunk, scene.size.n));
  }

  std::vector<const Array<S>*> all() const {
    return {&v_values, &v_means2d, &v_conics, &v_opacities2d, &absgrad,
            &v_means,  &v_quats,   &v_scales, &v_opacities,   &v_views};
  }
};

}  // namespace gsfields::cpu
