// All CUDA kernels on small scenes, for the sanitizers, compared with the CPU kernels in float64. Scenes have more than
// two batches per tile, ragged images, no Gaussians, and channels beyond what a kernel takes at once; blends also have
// sampled pixels, values and images of half size, and sums in a fixed order.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../cpp/motion.h"
#include "backends.h"

namespace {

// ---- scenes --------------------------------------------------------------------------------------------------------

struct Scene {
  int64_t n, views;
  int width, height;
  Numbers means, quats, scales, opacities, viewmats, Ks;

  // Faint Gaussians let all batches of a tile through.
  Scene(int64_t n_, int64_t views_, int width_, int height_, float most_opaque, float size)
      : n(n_), views(views_), width(width_), height(height_) {
    Random rng{std::mt19937(unsigned(n + width))};
    for (int64_t i = 0; i < n; ++i) {
      const float depth = rng.uniform(i % 30 ? 1 : -3, 6);  // some behind the camera
      means.push_back(rng.uniform(-0.6f, 0.6f) * depth), means.push_back(rng.uniform(-0.6f, 0.6f) * depth);
      means.push_back(depth);
      for (int k = 0; k < 3; ++k) scales.push_back(size * std::exp(rng.uniform(-1, 1)));
    }
    quats = rng.numbers(4 * n, -1, 1), opacities = rng.numbers(n, 0.006f, most_opaque);
    for (int64_t b = 0; b < views; ++b) {
      const float angle = rng.uniform(-0.2f, 0.2f), c = std::cos(angle), s = std::sin(angle), w = float(width);
      const float viewmat[] = {c, 0, s, rng.uniform(-0.2f, 0.2f), 0, 1, 0, 0.1f, -s, 0, c, 0, 0, 0, 0, 1};
      const float K[] = {w, 0, w * 0.55f, 0, w, float(height) * 0.45f, 0, 0, 1};
      viewmats.insert(viewmats.end(), viewmat, viewmat + 16), Ks.insert(Ks.end(), K, K + 9);
    }
  }
  int64_t tiles() const { return views * tiles_along(width) * tiles_along(height); }
  int64_t pixels() const { return views * height * width; }
};

// What the forward stages make of it, for the stages after.
struct Projected {
  Numbers means2d, depths, conics, opacities;
  std::vector<int32_t> radii;
};
struct Lists {
  std::vector<int32_t> ids;
  std::vector<int64_t> offsets;
};

template <class T>
std::vector<T> as(const std::vector<double>& numbers) {
  return {numbers.begin(), numbers.end()};
}

// ---- stages, as each backend runs them -----------------------------------------------------------------------------

template <class S>
struct Geometry {
  Array<S> means, quats, scales, opacities, viewmats, Ks;
  explicit Geometry(const Scene& s)
      : means(s.means), quats(s.quats), scales(s.scales), opacities(s.opacities), viewmats(s.viewmats), Ks(s.Ks) {}
  ProjectArgs<S> args(const Scene& s) const {
    ProjectArgs<S> a{};
    a.n = s.n, a.views = s.views, a.width = s.width, a.height = s.height, a.antialiased = s.n % 2;
    a.means = means.get(), a.quats = quats.get(), a.scales = scales.get(), a.opacities = opacities.get();
    a.viewmats = viewmats.get(), a.Ks = Ks.get();
    a.near_plane = S(0.01), a.far_plane = S(1e10), a.eps2d = S(0.3);
    return a;
  }
};

template <class B>
Results project(const Scene& s) {
  using S = typename B::Scalar;
  const Geometry<S> geometry(s);
  const int64_t splats = s.views * s.n;
  const Array<S> means2d(2 * splats), depths(splats), conics(3 * splats), opacities(splats);
  const Array<int32_t> radii(2 * splats);
  ProjectArgs<S> a = geometry.args(s);
  a.means2d = means2d.get(), a.depths = depths.get(), a.conics = conics.get(), a.opacities2d = opacities.get();
  a.radii = radii.get();
  B::project(a);
  return {means2d.numbers(), depths.numbers(), conics.numbers(), opacities.numbers(), radii.numbers()};
}

template <class B>
Results project_backward(const Scene& s, const Projected& p) {
  using S = typename B::Scalar;
  const Geometry<S> geometry(s);
  Random rng{std::mt19937(3)};
  const int64_t splats = s.views * s.n;
  const Array<S> v_means2d(rng.numbers(2 * splats, -1, 1)), v_depths(rng.numbers(splats, -1, 1));
  const Array<S> v_conics(rng.numbers(3 * splats, -1, 1)), v_opacities2d(rng.numbers(splats, -1, 1));
  const Array<int32_t> radii(p.radii);
  const Array<S> v_means(3 * s.n), v_quats(4 * s.n), v_scales(3 * s.n), v_opacities(s.n);
  const Array<S> v_views(B::projection_parts(s.n) * s.views * 12), v_viewmats(16 * s.views);
  ProjectBackwardArgs<S> a{};
  a.forward = geometry.args(s), a.forward.radii = radii.get();
  a.v_means2d = v_means2d.get(), a.v_depths = v_depths.get(), a.v_conics = v_conics.get();
  a.v_opacities2d = v_opacities2d.get(), a.v_means = v_means.get(), a.v_quats = v_quats.get();
  a.v_scales = v_scales.get(), a.v_opacities = v_opacities.get(), a.v_views = v_views.get();
  B::project_backward(a, v_viewmats.get());
  return {v_means.numbers(), v_quats.numbers(), v_scales.numbers(), v_opacities.numbers(), v_viewmats.numbers()};
}

template <class B>
Results sh(const Scene& s, int64_t channels, bool backward) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(4)};
  const int64_t splats = s.views * s.n, rest = 15;
  const Array<S> dirs(rng.numbers(3 * splats, -1, 1)), sh0(rng.numbers(s.n * channels, -1, 1));
  const Array<S> shN(rng.numbers(s.n * rest * channels, -1, 1)), v_colors(rng.numbers(splats * channels, -1, 1));
  const Array<S> colors(splats * channels), v_dirs(3 * splats), v_sh0(s.n * channels), v_shN(s.n * rest * channels);
  const Array<bool> masks(splats);
  for (int64_t i = 0; i < splats; ++i) masks.get()[i] = i % 5 > 0;
  ShArgs<S> a{};
  a.n = s.n, a.views = s.views, a.channels = channels, a.rest = rest, a.degree = 3, a.masks = masks.get();
  a.dirs = dirs.get(), a.sh0 = sh0.get(), a.sh0_stride = channels, a.shN = shN.get(), a.shN_stride = rest * channels;
  a.colors = colors.get(), a.v_colors = v_colors.get();
  a.v_dirs = v_dirs.get(), a.v_sh0 = v_sh0.get(), a.v_shN = v_shN.get();
  B::sh(a, backward);
  if (!backward) return {colors.numbers()};
  return {v_dirs.numbers(), v_sh0.numbers(), v_shN.numbers()};
}

template <class B>
Results respond(int64_t n, int64_t rank, bool posed) {
  Moving<typename B::Scalar> moving(n, rank, posed, B::response_parts(n));
  B::respond(moving.args());
  B::respond_backward(moving.backward_args(), moving.v_code.data());
  return moving.results();
}

template <class B>
Results bin(const Scene& s, const Projected& p) {
  using S = typename B::Scalar;
  const Array<S> means2d(p.means2d), depths(p.depths), conics(p.conics), opacities(p.opacities);
  const Array<int32_t> radii(p.radii);
  const Array<int64_t> offsets(s.tiles() + 1);
  const Array<int32_t> ids = B::bin(BinInput<S>{s.n, s.views, means2d.get(), depths.get(), conics.get(),
                                                opacities.get(), radii.get(), s.width, s.height},
                                    offsets.get());
  return {ids.numbers(), offsets.numbers()};
}

// How a blend is done.
struct Blending {
  int64_t channels;
  int64_t samples = 0;  // pixels, or 0 for all
  math::Storage storage = math::Storage::kFull;
  bool deterministic = false;
};

// Numbers as values and images are stored. In double, where they are in full, they have been rounded all the same.
template <class S>
class Stored {
 public:
  Stored(int64_t n, math::Storage storage)
      : storage_(sizeof(S) == sizeof(float) ? storage : math::Storage::kFull),
        n_(n),
        pairs_of_bytes_(n * math::bytes_of(storage_, sizeof(S)) / 2) {}
  Stored(const Numbers& from, math::Storage storage) : Stored(int64_t(from.size()), storage) {
    uint16_t rounded[2];
    for (int64_t i = 0; i < n_; ++i) {
      math::store_as(rounded, 0, storage, from[size_t(i)]);
      math::store_as<S>(get(), i, storage_, S(math::load_as<float>(rounded, 0, storage)));
    }
  }
  void* get() const { return pairs_of_bytes_.get(); }
  math::Storage storage() const { return storage_; }
  std::vector<double> numbers() const {
    std::vector<double> x;
    for (int64_t i = 0; i < n_; ++i) x.push_back(double(math::load_as<S>(get(), i, storage_)));
    return x;
  }

 private:
  math::Storage storage_;
  int64_t n_;
  Array<uint16_t> pairs_of_bytes_;
};

template <class S>
struct BlendData {
  Stored<S> values;
  Array<S> means2d, conics, opacities, background;
  Array<int32_t> ids;
  Array<int64_t> offsets, pixels, pixel_offsets;
  BlendInput<S> input;
  BlendData(const Scene& s, const Projected& p, const Lists& lists, const Blending& how, Random& rng)
      : values(rng.numbers(s.n * how.channels, -1, 1), how.storage),
        means2d(p.means2d),
        conics(p.conics),
        opacities(p.opacities),
        background(rng.numbers(s.views * how.channels, -1, 1)),
        ids(lists.ids),
        offsets(lists.offsets),
        input{} {
    input.n = s.n, input.views = s.views, input.channels = how.channels, input.background_stride = how.channels;
    input.values = values.get(), input.storage = values.storage();
    input.means2d = means2d.get(), input.conics = conics.get();
    input.opacities = opacities.get(), input.background = background.get(), input.ids = ids.get();
    input.pairs = int64_t(lists.ids.size()), input.tile_offsets = offsets.get();
    input.width = s.width, input.height = s.height, input.rows = s.pixels();
    if (how.samples) sample(s, how.samples, rng);
  }

 private:
  // Pixels anywhere, some of them more than once, sorted by tile.
  void sample(const Scene& s, int64_t count, Random& rng) {
    std::vector<int64_t> chosen, ends;
    for (int64_t i = 0; i < count; ++i) chosen.push_back(int64_t(rng.engine() % uint64_t(s.pixels())));
    const auto tile = [&](int64_t pixel) { return tile_of_pixel(pixel, s.width, s.height); };
    std::sort(chosen.begin(), chosen.end(), [&](int64_t a, int64_t b) { return tile(a) < tile(b); });
    for (int64_t t = 0; t <= s.tiles(); ++t)
      ends.push_back(std::count_if(chosen.begin(), chosen.end(), [&](int64_t pixel) { return tile(pixel) < t; }));
    pixels = Array<int64_t>(chosen), pixel_offsets = Array<int64_t>(ends);
    input.pixels = pixels.get(), input.pixel_offsets = pixel_offsets.get(), input.rows = count;
  }
};

// Forward, backward, lift and what is seen: the second needs what the first one made.
template <class B>
Results blend(const Scene& s, const Projected& p, const Lists& lists, const Blending& how) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(5)};
  const BlendData<S> data(s, p, lists, how, rng);
  const int64_t rows = data.input.rows, channels = how.channels, splats = s.views * s.n;
  const Stored<S> image(rows * channels, how.storage);
  const Array<S> transmittance(rows);
  const Array<int32_t> last(rows);
  B::blend(data.input, image.get(), transmittance.get(), last.get());

  const Stored<S> v_image(rng.numbers(rows * channels, -1, 1), how.storage);
  const Array<S> v_transmittance(rng.numbers(rows, -1, 1)), v_values(s.n * channels), v_means2d(2 * splats);
  const Array<S> v_conics(3 * splats), v_opacities(splats), absgrad(2 * splats), only_values(s.n * channels);
  const BlendGrads<S> all = {v_image.get(),  v_transmittance.get(), v_values.get(), v_means2d.get(),
                             v_conics.get(), v_opacities.get(),     absgrad.get(),  how.deterministic};
  B::blend_backward(data.input, transmittance.get(), last.get(), all);
  BlendGrads<S> values{};
  values.v_image = v_image.get(), values.v_transmittance = v_transmittance.get(), values.v_values = only_values.get();
  values.deterministic = how.deterministic;
  B::blend_backward(data.input, transmittance.get(), last.get(), values);

  const Array<S> factors(rng.numbers(rows, 0, 1)), sums(s.n * channels), total(s.n);
  BlendInput<S> of_lift = data.input;
  of_lift.values = nullptr, of_lift.background = nullptr;
  B::lift(of_lift, {v_image.get(), factors.get(), sums.get(), total.get(), how.deterministic});
  const Array<bool> seen(how.samples ? data.input.pairs : 0);
  if (how.samples) B::seen_pairs(data.input, seen.get());
  return {image.numbers(),       transmittance.numbers(), last.numbers(),        v_values.numbers(),
          v_means2d.numbers(),   v_conics.numbers(),      v_opacities.numbers(), absgrad.numbers(),
          only_values.numbers(), sums.numbers(),          total.numbers(),       seen.numbers()};
}

template <class B>
Results ssim(int64_t images, int64_t height, int64_t width, int64_t channels) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(6)};
  const int64_t all = images * height * width * channels;
  const Array<S> image1(rng.numbers(all, 0, 1)), image2(rng.numbers(all, 0, 1)), v_map(rng.numbers(all, -1, 1));
  const Array<S> map(all), d_mu(all), d_var(all), d_cov(all), v_image1(all);
  SsimArgs<S> a{};
  a.height = height, a.row = width * channels, a.channels = channels;
  a.image1 = image1.get(), a.image2 = image2.get(), a.map = map.get(), a.d_mu = d_mu.get(), a.d_var = d_var.get();
  a.d_cov = d_cov.get(), a.v_map = v_map.get(), a.v_image1 = v_image1.get();
  B::ssim(a, images, false);
  B::ssim(a, images, true);
  return {map.numbers(), d_mu.numbers(), d_var.numbers(), d_cov.numbers(), v_image1.numbers()};
}

template <class B>
Results contrast(int64_t pixels, int64_t others, int64_t dim, bool squared) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(7)};
  const Array<S> features(rng.numbers(pixels * dim, -1, 1)), other_features(rng.numbers(others * dim, -1, 1));
  const Array<S> v_losses(rng.numbers(pixels, -1, 1)), losses(pixels), logsums(2 * pixels), v_features(pixels * dim);
  const Array<S> v_others(others * dim);
  const Array<int32_t> segments(pixels), other_segments(others);
  for (int64_t i = 0; i < pixels; ++i) segments.get()[i] = int32_t(i % 5);
  for (int64_t j = 0; j < others; ++j) other_segments.get()[j] = int32_t(j % 4);
  ContrastArgs<S> a{};
  a.pixels = pixels, a.others = others, a.dim = dim, a.features = features.get();
  a.other_features = other_features.get(), a.segments = segments.get(), a.other_segments = other_segments.get();
  a.squared = squared, a.two_exponentials = !squared, a.own_partner = true, a.sharpness = 3, a.partner_sharpness = 1;
  a.losses = losses.get(), a.logsums = logsums.get(), a.v_losses = v_losses.get();
  a.v_features = v_features.get(), a.v_other_features = v_others.get();
  B::contrast(a, false);
  B::contrast(a, true);
  return {losses.numbers(), v_features.numbers(), v_others.numbers()};
}

template <class B>
Results adam_rows(int64_t n, int64_t dim) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(8)};
  const int64_t count = n / 2;
  const Array<S> table(rng.numbers(n * dim, -1, 1)), grads(rng.numbers(count * dim, -1, 1));
  const Array<S> first(rng.numbers(n * dim, 0, 0)), second(rng.numbers(n * dim, 0, 0)),
      powers(rng.numbers(2 * n, 1, 1));
  const Array<int64_t> rows(count);
  for (int64_t i = 0; i < count; ++i) rows.get()[i] = 2 * i + 1;
  for (int step = 0; step < 3; ++step)
    B::adam_rows({n, dim, table.get(), first.get(), second.get(), powers.get(), rows.get(), grads.get(), S(0.25),
                  S(0.5), S(0.75), S(1e-3)},
                 count);
  return {table.numbers(), first.numbers(), second.numbers(), powers.numbers()};
}

// Half the rows, which missed 0 to 6 moves.
template <class B>
Results follow_rows(int64_t n, int64_t dim) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(10)};
  const int64_t count = n / 2;
  const Array<S> fast(rng.numbers(n * dim, -1, 1)), slow(rng.numbers(n * dim, -1, 1)), both(2 * count * dim);
  const Array<int32_t> followed(n);
  const Array<int64_t> rows(count);
  for (int64_t i = 0; i < n; ++i) followed.get()[i] = int32_t(3 + i % 7);
  for (int64_t i = 0; i < count; ++i) rows.get()[i] = 2 * i + 1;
  B::follow_rows({n, dim, fast.get(), slow.get(), followed.get(), rows.get(), 9, S(0.75), both.get()}, count);
  return {slow.numbers(), both.numbers()};
}

// Bags of 0 to 4 members, of which every third has no row; asked for from the last to the first, but one in five.
template <class B>
Results sum_bags(int64_t n, int64_t dim, bool placed) {
  using S = typename B::Scalar;
  Random rng{std::mt19937(9)};
  const Array<S> values(rng.numbers(n * dim, -1, 1));
  std::vector<int32_t> place(static_cast<size_t>(n)), members;
  std::vector<int64_t> ends, bags;
  for (int64_t i = 0; i < n; ++i) place[size_t(i)] = i % 3 ? int32_t(n - 1 - i) : -1;
  for (int64_t bag = 0; bag < n; ++bag) {
    for (int64_t k = 0; k < bag % 5; ++k) members.push_back(int32_t((bag * 7 + k * 3) % n));
    ends.push_back(int64_t(members.size()));
    if (bag % 5 != 2) bags.insert(bags.begin(), bag);
  }
  const int64_t listed = int64_t(members.size()), count = int64_t(bags.size());
  const Array<S> shares(rng.numbers(listed, -1, 1)), sums(count * dim);
  const Array<int32_t> places(place), things(members);
  const Array<int64_t> all_ends(ends), asked(bags);
  B::sum_bags({dim, listed, values.get(), placed ? places.get() : nullptr, things.get(), shares.get(), all_ends.get(),
               asked.get(), sums.get()},
              count);
  return {sums.numbers()};
}

// ---- comparison ----------------------------------------------------------------------------------------------------

// A number may be off by `tolerance` of the largest. A few may be off by more, where rounding decides whether a pair is
// blended or a splat reaches a tile.
void compare(const std::string& what, const Results& actual, const Results& expected, double tolerance, double few) {
  for (size_t k = 0; k < expected.size(); ++k) {
    const std::string name = what + ", result " + std::to_string(k);
    if (actual[k].size() != expected[k].size()) {
      expect(false, name + ": another length");
      continue;
    }
    double scale = 1e-30, off = 0;
    for (const double e : expected[k]) scale = std::max(scale, std::abs(e));
    for (size_t i = 0; i < expected[k].size(); ++i)
      off += !(std::abs(actual[k][i] - expected[k][i]) <= tolerance * scale);
    expect(off <= few * double(expected[k].size()),
           name + ": " + std::to_string(off) + " of " + std::to_string(expected[k].size()) + " numbers");
  }
}

double rounding_of(math::Storage storage) {
  return storage == math::Storage::kBfloat16 ? 1.0 / 256 : storage == math::Storage::kFloat16 ? 1.0 / 2048 : 0;
}

// The longest prefix of a tile's list that a pixel blends must reach `batches` batches of a tile's 256 threads.
void test_scene(const Scene& s, const std::vector<Blending>& blendings, int batches, const std::string& name) {
  const Results projected = project<Cpu>(s);
  const Projected p = {as<float>(projected[0]), as<float>(projected[1]), as<float>(projected[2]),
                       as<float>(projected[3]), as<int32_t>(projected[4])};
  const Results binned = bin<Cpu>(s, p);
  const Lists lists = {as<int32_t>(binned[0]), as<int64_t>(binned[1])};
  compare(name + "project", project<Cuda>(s), projected, 1e-5, 2e-3);
  compare(name + "project backward", project_backward<Cuda>(s, p), project_backward<Cpu>(s, p), 1e-4, 2e-3);
  compare(name + "bin", bin<Cuda>(s, p), binned, 0, 0);
  for (const Blending& how : blendings) {
    const int64_t count = how.channels;
    const std::string with = ", " + std::to_string(count) + " channels";
    compare(name + "SH" + with, sh<Cuda>(s, count, false), sh<Cpu>(s, count, false), 1e-5, 0);
    compare(name + "SH backward" + with, sh<Cuda>(s, count, true), sh<Cpu>(s, count, true), 1e-5, 0);
    const Results blended = blend<Cpu>(s, p, lists, how);
    compare(name + "blend" + with, blend<Cuda>(s, p, lists, how), blended, 1e-4 + rounding_of(how.storage), 2e-2);
    double last = 0;
    for (const double pixel : blended[2]) last = std::max(last, pixel);
    expect(last > 256 * (batches - 1), name + "a pixel blends " + std::to_string(last) + " of its list");
  }
}

}  // namespace

int main() {
  for (const auto order : {emulator::Order::reverse, emulator::Order::random}) {
    emulator::set_order(order, 11);
    const std::string name = order == emulator::Order::reverse ? "reverse: " : "random: ";
    test_scene({620, 1, 20, 18, 0.02f, 0.8f}, {{3}, {20}}, 3, name + "faint, ");
    test_scene({60, 2, 37, 9, 1.0f, 0.1f}, {{1}, {33}, {150}, {530}}, 1, name + "ragged, ");
    test_scene({150, 1, 20, 18, 0.3f, 0.4f}, {{3, 700}, {20, 700}}, 1, name + "sampled, ");
    test_scene({90, 2, 20, 18, 0.3f, 0.4f},
               {{2, 0, math::Storage::kBfloat16}, {5, 500, math::Storage::kFloat16}, {19, 0, math::Storage::kBfloat16}},
               1, name + "half, ");
    test_scene({90, 2, 20, 18, 0.3f, 0.4f}, {{3, 0, {}, true}, {20, 500, {}, true}}, 1, name + "in order, ");
    test_scene({0, 2, 17, 5, 1.0f, 0.1f}, {{3}}, 0, name + "no Gaussians, ");
    test_scene({5, 0, 17, 5, 1.0f, 0.1f}, {{3}}, 0, name + "no views, ");
    for (const auto& [n, rank] : {std::array<int64_t, 2>{300, 5}, {33, 70}, {20, 0}, {0, 3}})
      compare(name + "respond", respond<Cuda>(n, rank, n % 2), respond<Cpu>(n, rank, n % 2), 1e-5, 0);
    for (const auto& [pixels, others, dim] : {std::array<int64_t, 3>{70, 45, 3}, {9, 130, 17}, {1, 1, 8}, {0, 5, 2}})
      for (const bool squared : {false, true})
        compare(name + "contrast", contrast<Cuda>(pixels, others, dim, squared),
                contrast<Cpu>(pixels, others, dim, squared), 1e-4, 0);
    for (const auto& [n, dim] : {std::array<int64_t, 2>{300, 5}, {9, 70}, {0, 3}}) {
      compare(name + "adam", adam_rows<Cuda>(n, dim), adam_rows<Cpu>(n, dim), 1e-5, 0);
      compare(name + "follow", follow_rows<Cuda>(n, dim), follow_rows<Cpu>(n, dim), 1e-5, 0);
    }
    for (const auto& [n, dim] : {std::array<int64_t, 2>{300, 5}, {9, 70}, {0, 3}})
      for (const bool placed : {false, true})
        compare(name + "bags", sum_bags<Cuda>(n, dim, placed), sum_bags<Cpu>(n, dim, placed), 1e-5, 0);
    for (const auto& [images, height, width, count] :
         {std::array<int64_t, 4>{2, 60, 37, 3}, {1, 3, 200, 1}, {1, 20, 5, 7}, {0, 5, 5, 3}})
      compare(name + "ssim", ssim<Cuda>(images, height, width, count), ssim<Cpu>(images, height, width, count), 1e-5,
              0);
  }
  return failures != 0;
}
