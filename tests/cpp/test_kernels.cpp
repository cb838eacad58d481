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

#include "check.h"
#include "other_ops.h"
#include "scenes.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

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

// Some pixels of every tile, one of them many times, give the rows of the whole image; and so do their gradients.
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
    test_adam<S>(n, dim, where), test_follow<S>(n, dim, where), test_bags<S>(n, dim, where);
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
