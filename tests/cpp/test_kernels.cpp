// The CPU kernels without torch, for the sanitizers: every instruction set, float and double, ragged sizes, hostile
// numbers. Every array is its own heap allocation of exactly the size the interface asks for, and outputs start as
// garbage, so that an overrun stops the run and an unwritten output is seen.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "motion.h"
#include "scenes.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

int passed = 0, failed = 0;

void check(bool good, const std::string& what) {
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s\n", what.c_str());
}

// ------------------------------------------------------------------------------------------------ naive references

// The blend as its rules read, pixel by pixel over all Gaussians, in double; and dL/dvalues on the way.
struct Naive {
  Array<double> image, transmittance, v_values;
  int64_t close_calls = 0;  // pixels whose decisions float32 may take differently; they are copied from `actual`

  template <class S>
  Naive(const Scene<S>& scene, const Forward<S>& f, const Array<S>& v_image)
      : image(f.image.size()), transmittance(f.transmittance.size()), v_values(scene.values.size()) {
    const Size& s = scene.size;
    std::fill(v_values.begin(), v_values.end(), 0.0);
    for (int64_t b = 0; b < s.views; ++b) {
      std::vector<int64_t> order;
      for (int64_t i = 0; i < s.n; ++i)
        if (f.radii[2 * (b * s.n + i)] > 0) order.push_back(i);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t i, int64_t j) { return f.depths[b * s.n + i] < f.depths[b * s.n + j]; });
      for (int64_t p = 0; p < int64_t(s.width) * s.height; ++p) pixel(scene, f, v_image, order, b, p);
    }
  }

  template <class S>
  void pixel(const Scene<S>& scene, const Forward<S>& f, const Array<S>& v_image, const std::vector<int64_t>& order,
             int64_t b, int64_t p) {
    const Size& s = scene.size;
    const int64_t C = s.channels, at = b * s.width * s.height + p;
    const double x = double(p % s.width) + 0.5, y = double(p / s.width) + 0.5;
    std::vector<double> sum(static_cast<size_t>(C));
    std::vector<std::pair<int64_t, double>> weights;
    double T = 1;
    bool close = false;
    const double tolerance = sizeof(S) == 4 ? 1e-4 : 1e-11;
    for (const int64_t i : order) {
      const int64_t g = b * s.n + i;
      const double dx = x - f.means2d[2 * g], dy = y - f.means2d[2 * g + 1];
      const double power =
          0.5 * (f.conics[3 * g] * dx * dx + f.conics[3 * g + 2] * dy * dy) + f.conics[3 * g + 1] * dx * dy;
      const double raw = f.opacities2d[g] * std::exp(-power), alpha = std::min(raw, 0.99);
      close |= std::abs(raw * 255 - 1) < tolerance;
      if (raw < 1.0 / 255) continue;
      close |= std::abs(T * (1 - alpha) / 1e-4 - 1) < 10 * tolerance;
      if (T * (1 - alpha) <= 1e-4) break;
      for (int64_t c = 0; c < C; ++c) sum[size_t(c)] += alpha * T * scene.values[i * C + c];
      weights.emplace_back(i, alpha * T);
      T *= 1 - alpha;
    }
    close_calls += close;
    for (int64_t c = 0; c < C; ++c)
      image[at * C + c] = close ? double(f.image[at * C + c]) : sum[size_t(c)] + T * scene.background[b * C + c];
    transmittance[at] = close ? double(f.transmittance[at]) : T;
    for (const auto& [i, w] : weights)
      for (int64_t c = 0; c < C; ++c) v_values[i * C + c] += w * v_image[at * C + c];
  }
};

// ------------------------------------------------------------------------------------------------------- the tests

template <class S>
void test_pipeline(const Size& size, const std::string& where) {
  const std::string what = where + "pipeline, " + size.name() + ": ";
  const Scene<S> scene(size, uint64_t(size.n * 31 + size.width));
  const Forward<S> one = forward(scene, threads(1)), three = forward(scene, threads(3));
  const Backward<S> grads(scene, one, threads(1)), again(scene, one, threads(3));
  check(std::equal(one.image.begin(), one.image.end(), three.image.begin()),
        what + "image differs between 1 and 3 threads");
  check(std::equal(one.ids->begin(), one.ids->end(), three.ids->begin(), three.ids->end()), what + "lists differ");
  bool finite = true, same = true;
  const auto first = grads.all(), second = again.all();
  for (size_t k = 0; k < first.size(); ++k) {
    finite &= all_finite(*first[k]);
    same &= std::equal(first[k]->begin(), first[k]->end(), second[k]->begin());
  }
  check(finite, what + "a gradient is not finite");
  check(same, what + "a gradient differs between 1 and 3 threads");

  const Naive naive(scene, one, grads.v_image);
  const bool f32 = sizeof(S) == 4;
  check(error(one.image, naive.image) < (f32 ? 1e-5 : 1e-12), what + "image");
  check(error(one.transmittance, naive.transmittance) < (f32 ? 1e-5 : 1e-12), what + "transmittance");
  // A close call changes one weight by 1/255 at most.
  const double flips = naive.close_calls ? 4.0 / 255 : 0;
  check(error(grads.v_values, naive.v_values) < (f32 ? 2e-5 : 1e-12) + flips, what + "gradient of the values");
  check(naive.close_calls * 20 <= size.views * size.width * size.height + 20, what + "too many close calls to compare");
}

// A lift is the gradient of the values, and the weights alone that of a channel of ones.
template <class S>
void test_lift(const Size& size, const std::string& where) {
  const Scene<S> scene(size, uint64_t(size.n * 7 + size.width));
  const Forward<S> f = forward(scene, threads(2));
  const Backward<S> grads(scene, f, threads(2));
  Array<S> factors(f.transmittance.size()), sums(size.n * size.channels), total(size.n), again(sums.size());
  std::fill(factors.begin(), factors.end(), S(2));
  const BlendInput<S> in = blend_input(scene, f);
  lift(in, {grads.v_image.get(), factors.get(), sums.get(), total.get(), true}, threads(1));
  lift(in, {grads.v_image.get(), factors.get(), again.get(), nullptr, true}, threads(3));
  const std::string what = where + "lift, " + size.name();
  check(std::equal(sums.begin(), sums.end(), again.begin()), what + ": differs between 1 and 3 threads");
  Array<double> twice(sums.size());
  for (int64_t i = 0; i < sums.size(); ++i) twice[i] = 2 * double(grads.v_values[i]);
  check(error(sums, twice) < (sizeof(S) == 4 ? 1e-5 : 1e-12), what);
  double weights = 0, shares = 0;
  for (int64_t i = 0; i < size.n; ++i) weights += total[i];
  for (int64_t i = 0; i < f.transmittance.size(); ++i) shares += 2 * (1 - double(f.transmittance[i]));
  check(std::abs(weights - shares) < (sizeof(S) == 4 ? 1e-4 : 1e-10) * (1 + shares), what + ": total");
}

// Some pixels of every tile, one of them many times, give the rows of the whole image; and so do their gradients.
// Nothing is seen in a tile without pixels; what pixels of a tile blend last is.
template <class S>
void check_seen(const BlendInput<S>& in, const int32_t* last, const std::string& where) {
  Array<bool> seen(in.pairs);
  seen_pairs(in, seen.get(), threads(2));
  const std::vector<int32_t> used = used_lists(in, last);
  for (int64_t tile = 0; tile < int64_t(used.size()); ++tile) {
    const bool* const first = seen.get() + in.tile_offsets[tile];
    const bool* const end = seen.get() + in.tile_offsets[tile + 1];
    const bool empty = in.pixel_offsets[tile] == in.pixel_offsets[tile + 1];
    check(!empty || std::count(first, end, true) == 0, where + ": seen without pixels");
    check(used[size_t(tile)] == 0 || first[used[size_t(tile)] - 1], where + ": blended but not seen");
  }
}

template <class S>
void test_sampled_pixels(const Size& size, const std::string& where) {
  const Scene<S> scene(size, uint64_t(size.n * 5 + size.width));
  const Forward<S> f = forward(scene, threads(2));
  Random rng{std::mt19937_64(3)};
  const int64_t tiles = Forward<S>::tiles(size), area = int64_t(size.width) * size.height;
  std::vector<std::vector<int64_t>> of_tile{size_t(tiles)};
  for (int64_t pixel = 0; pixel < size.views * area; ++pixel) {
    const int64_t times = pixel == area / 2 ? 700 : int64_t(rng.uniform(0, 1) < 0.1);
    auto& list = of_tile[size_t(tile_of_pixel(pixel, size.width, size.height))];
    list.insert(list.end(), size_t(times), pixel);
  }
  Array<int64_t> offsets(tiles + 1);
  offsets[0] = 0;
  for (int64_t t = 0; t < tiles; ++t) offsets[t + 1] = offsets[t] + int64_t(of_tile[size_t(t)].size());
  Array<int64_t> pixels(offsets[tiles]);
  for (int64_t t = 0; t < tiles; ++t)
    std::copy(of_tile[size_t(t)].begin(), of_tile[size_t(t)].end(), &pixels[offsets[t]]);
  BlendInput<S> in = blend_input(scene, f);
  in.rows = pixels.size(), in.pixels = pixels.get(), in.pixel_offsets = offsets.get();
  const int64_t C = size.channels;
  Array<S> image(in.rows * C), transmittance(in.rows), v_values(scene.values.size()), v_T(in.rows);
  Array<S> v_means2d(f.means2d.size()), v_conics(f.conics.size()), v_opacities(f.opacities2d.size());
  Array<int32_t> last(in.rows);
  blend(in, image.get(), transmittance.get(), last.get(), threads(2));
  double worst = 0;
  for (int64_t i = 0; i < in.rows; ++i)
    for (int64_t c = 0; c < C; ++c)
      worst = std::max(worst, std::abs(double(image[i * C + c]) - double(f.image[pixels[i] * C + c])));
  check(worst < (sizeof(S) == 4 ? 1e-5 : 1e-12), where + "sampled pixels, " + size.name());
  check_seen(in, last.get(), where + size.name());
  std::fill(v_T.begin(), v_T.end(), S(1));
  blend_backward(
      in, used_lists(in, last.get()).data(),
      {image.get(), v_T.get(), v_values.get(), v_means2d.get(), v_conics.get(), v_opacities.get(), nullptr, true},
      threads(2));
  check(all_finite(v_values) && all_finite(v_means2d), where + "gradients of sampled pixels, " + size.name());
}

// Values and image in half the bytes.
void test_half_storage(const Size& size, math::Storage storage, const std::string& where) {
  const Scene<float> scene(size, 21);
  Forward<float> f = forward(scene, threads(2));
  Array<uint16_t> values(scene.values.size()), image(f.image.size());
  for (int64_t i = 0; i < values.size(); ++i) {
    math::store_as(values.get(), i, storage, scene.values[i]);
    scene.values[i] = math::load_as<float>(values.get(), i, storage);
  }
  BlendInput<float> in = blend_input(scene, f);
  blend(in, f.image.get(), f.transmittance.get(), f.last.get(), threads(1));
  in.values = values.get(), in.storage = storage;
  blend(in, image.get(), f.transmittance.get(), f.last.get(), threads(1));
  double worst = 0;
  for (int64_t i = 0; i < image.size(); ++i)
    worst = std::max(worst, double(std::abs(math::load_as<float>(image.get(), i, storage) - f.image[i])));
  check(worst < (storage == math::Storage::kBfloat16 ? 0x1p-8 : 0x1p-11), where + "half storage, " + size.name());
  Array<float> sums(scene.values.size()), v_T(f.transmittance.size()), v_means2d(f.means2d.size());
  Array<float> v_conics(f.conics.size()), v_opacities(f.opacities2d.size()), full(sums.size());
  std::fill(v_T.begin(), v_T.end(), 0.0f);
  blend_backward(
      in, used_lists(in, f.last.get()).data(),
      {image.get(), v_T.get(), sums.get(), v_means2d.get(), v_conics.get(), v_opacities.get(), nullptr, true},
      threads(2));
  for (int64_t i = 0; i < image.size(); ++i) f.image[i] = math::load_as<float>(image.get(), i, storage);
  in.storage = math::Storage::kFull, in.values = scene.values.get();
  lift(in, {f.image.get(), nullptr, full.get(), nullptr, true}, threads(1));
  Array<double> expected(full.size());
  std::copy(full.begin(), full.end(), expected.begin());
  check(error(sums, expected) < 1e-5, where + "half storage, gradient of the values, " + size.name());
}

template <class S>
void test_culled_outputs_are_zero(const std::string& where) {
  const Size size{500, 2, 1, 40, 30};
  const Scene<S> scene(size, 5);
  const Forward<S> f = forward(scene, threads(1));
  int64_t culled = 0;
  bool zero = true;
  for (int64_t g = 0; g < size.n * size.views; ++g) {
    check((f.radii[2 * g] > 0) == (f.radii[2 * g + 1] > 0), where + "one radius of two is zero");
    if (f.radii[2 * g] > 0) continue;
    ++culled;
    zero &= f.means2d[2 * g] == 0 && f.depths[g] == 0 && f.conics[3 * g] == 0 && f.opacities2d[g] == 0;
  }
  check(zero && culled > 20 && culled < size.n, where + "outputs of culled Gaussians");
}

// Numbers that go wrong in interesting ways.
template <class S>
S hostile(Random& rng) {
  using L = std::numeric_limits<S>;
  const S numbers[] = {L::quiet_NaN(),   L::infinity(), -L::infinity(), L::max(), -L::max(), L::denorm_min(),
                       -L::denorm_min(), L::min(),      S(0),           S(-0.0),  S(1e-30),  S(-1e30),
                       S(1e20),          L::epsilon(),  S(-1),          S(255)};
  return numbers[std::uniform_int_distribution<size_t>(0, std::size(numbers) - 1)(rng.engine)];
}

template <class S>
void poison(Random& rng, const Array<S>& a, double share) {
  for (S& x : a)
    if (rng.uniform(0, 1) < share) x = hostile<S>(rng);
}

// Projection culls whatever is not finite, so that all behind it is finite.
template <class S>
void test_hostile_scene(uint64_t seed, const std::string& where) {
  const Size size{60, 2, 3, 37, 21};
  const Scene<S> scene(size, seed);
  Random rng{std::mt19937_64(seed)};
  poison(rng, scene.means, 0.15), poison(rng, scene.quats, 0.1), poison(rng, scene.scales, 0.15);
  poison(rng, scene.opacities, 0.2);
  if (seed % 4 == 3) poison(rng, scene.viewmats, 0.1), poison(rng, scene.Ks, 0.1);
  const Forward<S> f = forward(scene, threads(2));
  const Backward<S> grads(scene, f, threads(2));
  const std::string what = where + "hostile scene " + std::to_string(seed) + ": ";
  check(all_finite(f.means2d) && all_finite(f.depths) && all_finite(f.conics) && all_finite(f.opacities2d),
        what + "projection let something through that is not finite");
  check(all_finite(f.image) && all_finite(f.transmittance), what + "image");
}

// Binning and blending of projected Gaussians that no projection would make: no promise but to stay in bounds.
template <class S>
void test_hostile_splats(uint64_t seed, const std::string& where) {
  const Size size{50, 1, 2, 40, 25};
  const Scene<S> scene(size, seed);
  Forward<S> f = forward(scene, threads(1));
  Random rng{std::mt19937_64(seed)};
  poison(rng, f.means2d, 0.2), poison(rng, f.conics, 0.2), poison(rng, f.opacities2d, 0.2), poison(rng, f.depths, 0.2);
  for (int32_t& r : f.radii)
    if (rng.uniform(0, 1) < 0.2) r = int32_t(rng.uniform(0, 1 << 30));
  poison(rng, scene.values, 0.05);
  const Threads workers = threads(2);
  for (const bool new_lists : {false, true}) {  // first with the lists of the honest geometry
    if (new_lists) bin(size, f, workers);
    const auto inside = [&](int32_t id) { return id >= 0 && id < size.n; };
    check(std::all_of(f.ids->begin(), f.ids->end(), inside), where + "hostile splats: ids");
    blend(blend_input(scene, f), f.image.get(), f.transmittance.get(), f.last.get(), workers);
    const Backward<S> grads(scene, f, workers);
    const auto share = [](S T) { return T > S(0.99e-4) && T <= 1; };
    check(std::all_of(f.transmittance.begin(), f.transmittance.end(), share), where + "hostile splats: transmittance");
  }
}

template <class S>
void test_spherical_harmonics(int degree, int64_t channels, const std::string& where) {
  const int64_t n = 37, views = 2, rest = (degree + 1) * (degree + 1) - 1 + degree % 2;
  Array<S> dirs(3 * n * views), sh0(n * channels), shN(n * rest * channels), colors(n * views * channels);
  Array<S> v_colors(colors.size()), v_dirs(dirs.size()), v_sh0(sh0.size()), v_shN(shN.size());
  Array<bool> masks(n * views);
  Random rng{std::mt19937_64(uint64_t(degree))};
  rng.fill(dirs, -1, 1), rng.fill(sh0, -1, 1), rng.fill(shN, -1, 1), rng.fill(v_colors, -1, 1);
  for (bool& m : masks) m = rng.uniform(0, 1) < 0.8;
  masks[0] = masks[1] = true;
  dirs[0] = dirs[1] = dirs[2] = 0, dirs[3] = std::numeric_limits<S>::quiet_NaN();
  const ShArgs<S> args{
      n,        views,           channels,    rest,         degree,         dirs.get(),   sh0.get(),   shN.get(),
      channels, rest * channels, masks.get(), colors.get(), v_colors.get(), v_dirs.get(), v_sh0.get(), v_shN.get()};
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 17}, {17, n}}) {
    kernels().of<S>().sh(args, begin, end);
    kernels().of<S>().sh_backward(args, begin, end);
  }
  // The colours are linear in the coefficients: <colors, v> = <coefficients, gradient of the coefficients>.
  double forward = 0, backward = 0, size = 0;
  for (int64_t i = 0; i < colors.size(); ++i)
    forward += double(colors[i]) * v_colors[i], size += std::abs(double(colors[i]) * v_colors[i]);
  for (int64_t i = 0; i < sh0.size(); ++i) backward += double(sh0[i]) * v_sh0[i];
  for (int64_t i = 0; i < shN.size(); ++i) backward += double(shN[i]) * v_shN[i];
  check(std::abs(forward - backward) < (sizeof(S) == 4 ? 1e-5 : 1e-13) * size,
        where + "SH: the backward is not the adjoint");
  check(all_finite(colors) && all_finite(v_dirs) && all_finite(v_sh0) && all_finite(v_shN), where + "SH: not finite");
}

template <class S>
void test_respond(int64_t n, int64_t rank, bool posed, const std::string& where) {
  const auto& kernel = kernels().of<S>();
  Moving<S> moving(n, rank, posed, (n + kRespondChunk - 1) / kRespondChunk);
  const auto forward = [&] { kernel.respond(moving.args(), 0, n / 2), kernel.respond(moving.args(), n / 2, n); };
  const auto backward = [&](bool to_response, bool to_code) {
    for (int64_t begin = 0; begin < n; begin += kRespondChunk)
      kernel.respond_backward(moving.backward_args(to_response, to_code), begin, std::min(begin + kRespondChunk, n));
  };
  forward(), backward(false, false), backward(true, true);
  // The response is linear in the code: <response, its gradient> = <code, its own>.
  double by_response = 0, by_code = 0, size = 1e-30;
  for (size_t i = 0; i < moving.response.size(); ++i) {
    const double product = double(moving.response[i]) * moving.v_response[i];
    by_response += product, size += std::abs(product);
  }
  for (size_t i = 0; i < moving.v_codes.size(); ++i)
    by_code += double(moving.v_codes[i]) * moving.code[i % size_t(rank)];
  check(std::abs(by_response - by_code) <= (sizeof(S) == 4 ? 1e-5 : 1e-13) * size,
        where + "respond: the gradients of response and code differ");
  for (size_t i = 0; i < size_t(n); ++i)
    check((moving.opacities_t[i] > 0) == (i % 3 < 2), where + "respond: who lives is not who is seen");
  if (n < 3) return;
  moving.logits[0] = moving.windows[3] = std::numeric_limits<S>::quiet_NaN();
  moving.posed = !posed;
  forward(), backward(true, false), backward(false, true);
  check(moving.opacities_t[0] == 0 && moving.opacities_t[1] == 0, where + "respond: what is not a number is seen");
  for (const auto* made : {&moving.means_t, &moving.colors_t, &moving.v_windows, &moving.v_response, &moving.v_codes})
    check(std::all_of(made->begin(), made->end(), [](S x) { return std::isfinite(x) && x != Moving<S>::kUnwritten; }),
          where + "respond: not finite or not written");
}

double naive_ssim(const Array<double>& a, const Array<double>& b, int64_t H, int64_t W, int64_t C, int64_t y, int64_t x,
                  int64_t c) {
  double m1 = 0, m2 = 0, e11 = 0, e22 = 0, e12 = 0, total = 0;
  for (int k = -5; k <= 5; ++k) total += std::exp(-k * k / 4.5);
  for (int64_t dy = -5; dy <= 5; ++dy)
    for (int64_t dx = -5; dx <= 5; ++dx) {
      if (y + dy < 0 || y + dy >= H || x + dx < 0 || x + dx >= W) continue;
      const int64_t i = ((y + dy) * W + x + dx) * C + c;
      const double w = std::exp(-double(dx * dx + dy * dy) / 4.5) / (total * total);
      m1 += w * a[i], m2 += w * b[i], e11 += w * a[i] * a[i], e22 += w * b[i] * b[i], e12 += w * a[i] * b[i];
    }
  const double c1 = 1e-4, c2 = 9e-4;
  return (2 * m1 * m2 + c1) * (2 * (e12 - m1 * m2) + c2) /
         ((m1 * m1 + m2 * m2 + c1) * (e11 - m1 * m1 + e22 - m2 * m2 + c2));
}

template <class S>
void test_ssim(int64_t images, int64_t H, int64_t W, int64_t C, const std::string& where) {
  const int64_t size = images * H * W * C;
  Array<S> first(size), second(size), map(size), d_mu(size), d_var(size), d_cov(size), v_map(size), v_first(size);
  Random rng{std::mt19937_64(uint64_t(size))};
  rng.fill(first, 0, 1), rng.fill(second, 0, 1), rng.fill(v_map, -1, 1);
  const SsimArgs<S> args{H,          W * C,       C,           first.get(), second.get(), map.get(),
                         d_mu.get(), d_var.get(), d_cov.get(), v_map.get(), v_first.get()};
  for (const bool backward : {false, true}) ssim(args, images, backward, threads(2));
  check(all_finite(map) && all_finite(v_first), where + "SSIM is not finite");
  Array<double> expected(size), a(H * W * C), b(H * W * C);
  for (int64_t image = 0; image < images; ++image) {
    const int64_t at = image * a.size();
    std::copy_n(first.get() + at, a.size(), a.get()), std::copy_n(second.get() + at, b.size(), b.get());
    for (int64_t i = 0; i < a.size(); ++i) expected[at + i] = naive_ssim(a, b, H, W, C, i / (W * C), i / C % W, i % C);
  }
  check(error(map, expected) < (sizeof(S) == 4 ? 2e-4 : 1e-12),
        where + "SSIM of " + std::to_string(H) + "x" + std::to_string(W) + "x" + std::to_string(C));
}

// -log(sum over partners of exp(exp(-x)) / over all), x = distance / temperature, of one row of pairs.
double naive_contrast(const double* f, const Array<double>& others, int64_t dim, int32_t segment,
                      const Array<int32_t>& segments, int64_t self, const ContrastArgs<double>& kind) {
  double all = 0, own = 0;
  for (int64_t j = 0; j < segments.size(); ++j) {
    double squared = 0;
    for (int64_t k = 0; k < dim; ++k) squared += (f[k] - others[j * dim + k]) * (f[k] - others[j * dim + k]);
    const bool same = segments[j] == segment;
    const double x = (kind.squared ? squared : std::sqrt(squared)) * (same ? kind.partner_sharpness : kind.sharpness);
    const double counts = std::exp(kind.two_exponentials ? std::exp(-x) : -x);
    all += counts, own += same && (kind.own_partner || j != self) ? counts : 0;
  }
  return own > 0 ? -std::log(own / all) : 0;
}

// Losses against the formula, and the gradient against their differences along a random direction.
template <class S>
void test_contrast(int64_t n, int64_t m, int64_t dim, bool own_partner, const std::string& where) {
  Random rng{std::mt19937_64(uint64_t(1000 * n + dim))};
  const int64_t q = own_partner ? m : n;
  Array<S> features(n * dim), others(q * dim), losses(n), logsums(2 * n), v_losses(n), v_features(n * dim);
  Array<S> v_others(q * dim);
  Array<int32_t> segments(n), other_segments(q);
  rng.fill(features, -1, 1), rng.fill(others, -1, 1), rng.fill(v_losses, -1, 1);
  for (int64_t i = 0; i < n; ++i) segments[i] = int32_t(i * 7 % 5);
  for (int64_t j = 0; j < q; ++j) other_segments[j] = own_partner ? int32_t(j % 4) : segments[j];
  for (const bool squared : {false, true})
    for (const bool two : {false, true}) {
      ContrastArgs<S> a{};
      a.pixels = n, a.others = q, a.dim = dim;
      a.features = features.get(), a.other_features = others.get();
      a.segments = segments.get(), a.other_segments = other_segments.get();
      a.squared = squared, a.two_exponentials = two, a.own_partner = own_partner;
      a.sharpness = 2, a.partner_sharpness = S(0.5);
      a.losses = losses.get(), a.logsums = logsums.get(), a.v_losses = v_losses.get();
      a.v_features = v_features.get(), a.v_other_features = v_others.get();
      for (const bool backward : {false, true}) contrast(a, backward, threads(2));
      check(all_finite(losses) && all_finite(v_features) && all_finite(v_others), where + "contrast is not finite");
      ContrastArgs<double> kind{};
      kind.squared = squared, kind.two_exponentials = two, kind.own_partner = own_partner;
      kind.sharpness = 2, kind.partner_sharpness = 0.5;
      const auto weighted = [&](double step) {  // the losses' sum, all embeddings moved by a step
        Array<double> f(n * dim), o(q * dim);
        for (int64_t i = 0; i < n * dim; ++i) f[i] = double(features[i]) + step * std::sin(double(i));
        for (int64_t j = 0; j < q * dim; ++j) o[j] = double(others[j]) + step * std::cos(double(j));
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double loss = naive_contrast(&f[i * dim], o, dim, segments[i], other_segments, i, kind);
          if (step == 0) check(std::abs(loss - losses[i]) < (sizeof(S) == 4 ? 1e-5 : 1e-12), where + "contrast");
          sum += v_losses[i] * loss;
        }
        return sum;
      };
      weighted(0);
      double slope = 0;
      for (int64_t i = 0; i < n * dim; ++i) slope += v_features[i] * std::sin(double(i));
      for (int64_t j = 0; j < q * dim; ++j) slope += v_others[j] * std::cos(double(j));
      const double expected = (weighted(1e-5) - weighted(-1e-5)) / 2e-5;
      check(std::abs(slope - expected) < 1e-4 * (1 + std::abs(expected)), where + "gradient of contrast");
    }
}

// Rows of a table in a step of Adam, the others untouched.
template <class S>
void test_adam(int64_t n, int64_t dim, const std::string& where) {
  Array<S> table(n * dim), first(n * dim), second(n * dim), powers(2 * n), grads((n + 1) / 2 * dim);
  Array<int64_t> rows((n + 1) / 2);
  for (int64_t i = 0; i < n * dim; ++i) table[i] = S(i % 11), first[i] = second[i] = 0;
  for (int64_t i = 0; i < 2 * n; ++i) powers[i] = 1;
  for (int64_t i = 0; i < rows.size(); ++i) rows[i] = 2 * i;
  for (int64_t i = 0; i < grads.size(); ++i) grads[i] = S(i % 3 - 1);
  kernels().of<S>().adam_rows({n, dim, table.get(), first.get(), second.get(), powers.get(), rows.get(), grads.get(),
                               S(0.25), S(0.9), S(0.99), S(1e-8)},
                              0, rows.size());
  for (int64_t i = 0; i < n * dim; ++i) {  // the first step of Adam is the rate, whatever the gradient's length
    const int64_t row = i / dim;
    const double grad = row % 2 ? 0 : double(grads[row / 2 * dim + i % dim]);
    check(std::abs(table[i] - (i % 11 - 0.25 * grad)) < 1e-4, where + "a step of Adam");
  }
}

// Bag b has b % 4 members, b and those after it, of which the even ones have a row; all are asked for.
template <class S>
void test_bags(int64_t n, int64_t dim, const std::string& where) {
  Array<S> values(n * dim), sums(n * dim);
  Array<int32_t> place(n);
  Array<int64_t> ends(n), bags(n);
  int64_t listed = 0;
  for (int64_t b = 0; b < n; ++b) listed += b % 4, ends[b] = listed, bags[b] = b, place[b] = b % 2 ? -1 : int32_t(b);
  Array<int32_t> members(listed);
  Array<S> shares(listed);
  for (int64_t b = 0, k = 0; b < n; ++b)
    for (int64_t j = 0; j < b % 4; ++j, ++k) members[k] = int32_t((b + j) % n), shares[k] = S(k % 5 - 2);
  for (int64_t i = 0; i < n * dim; ++i) values[i] = S(i % 13 - 6), sums[i] = S(99);
  kernels().of<S>().sum_bags(
      {n, dim, n, listed, values.get(), place.get(), members.get(), shares.get(), ends.get(), bags.get(), sums.get()},
      0, n);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t c = 0; c < dim; ++c) {
      double expected = 0;
      for (int64_t k = b ? ends[b - 1] : 0; k < ends[b]; ++k)
        if (members[k] % 2 == 0) expected += double(shares[k]) * double(values[members[k] * dim + c]);
      check(sums[b * dim + c] == S(expected), where + "a sum of a bag");  // of whole numbers
    }
}

template <class S>
void test_all(const std::string& where) {
  const Size sizes[] = {{0, 1, 3, 17, 5},     {0, 0, 1, 16, 16},    {5, 0, 3, 20, 20},   {1, 1, 1, 1, 1},
                        {300, 1, 3, 1, 1},    {200, 2, 1, 17, 33},  {250, 3, 4, 50, 31}, {900, 1, 3, 64, 64},
                        {1500, 1, 5, 16, 16}, {120, 1, 7, 1, 70},   {120, 2, 8, 70, 1},  {150, 1, 17, 33, 20},
                        {40, 1, 65, 9, 7},    {2500, 1, 2, 48, 20}, {30, 1, 513, 5, 4},  {700, 2, 83, 30, 18}};
  for (const Size& size : sizes) {
    test_pipeline<S>(size, where), test_lift<S>(size, where);
    if (size.n && size.views) test_sampled_pixels<S>(size, where);
    for (const auto storage : {math::Storage::kBfloat16, math::Storage::kFloat16})
      if (sizeof(S) == 4) test_half_storage(size, storage, where);
  }
  test_culled_outputs_are_zero<S>(where);
  for (uint64_t seed = 0; seed < 12; ++seed) test_hostile_scene<S>(seed, where), test_hostile_splats<S>(seed, where);
  for (int degree = 0; degree <= 3; ++degree)
    for (const int64_t channels : {1, 3, 5}) test_spherical_harmonics<S>(degree, channels, where);
  for (const auto& [n, rank] :
       std::vector<std::array<int64_t, 2>>{{0, 4}, {1, 0}, {1, 1}, {33, 3}, {70, 16}, {1100, 37}, {40, 513}})
    for (const bool posed : {false, true}) test_respond<S>(n, rank, posed, where);
  for (const auto& [h, w, c] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {5, 3, 3}, {11, 11, 2}, {40, 13, 3}, {65, 7, 1}, {1, 50, 4}, {33, 1, 3}})
    test_ssim<S>(2, h, w, c, where);
  for (const auto& [n, m, dim] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 40, 3}, {33, 17, 16}, {70, 64, 5}, {130, 90, 37}, {5, 0, 2}, {0, 5, 2}})
    for (const bool own_partner : {true, false}) test_contrast<S>(n, m, dim, own_partner, where);
  for (const auto& [n, dim] : std::vector<std::array<int64_t, 2>>{{0, 3}, {1, 1}, {9, 16}, {20, 37}})
    test_adam<S>(n, dim, where), test_bags<S>(n, dim, where);
  test_bags<S>(50, 150, where);
}

}  // namespace

int main() {
  const std::pair<Isa, const char*> isas[] = {
      {Isa::baseline, "baseline"}, {Isa::avx2, "avx2"}, {Isa::avx512, "avx512"}};
  for (const auto& [isa, name] : isas) {
    if (!isa_available(isa)) {
      std::printf("%s is not available on this processor\n", name);
      continue;
    }
    set_isa(isa);
    test_all<float>(std::string(name) + " float: ");
    test_all<double>(std::string(name) + " double: ");
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
