// Tests of the ops that do not blend: spherical harmonics, responses, similarity of images, pairs of pixels, rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "motion.h"
#include "scenes.h"

namespace gsfields::cpu {

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

inline double naive_ssim(const Array<double>& a, const Array<double>& b, int64_t H, int64_t W, int64_t C, int64_t y,
                         int64_t x, int64_t c) {
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
inline double naive_contrast(const double* f, const Array<double>& others, int64_t dim, int32_t segment,
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

// Every other row, which missed its number % 5 moves of the average: 2^-missed of it is left.
template <class S>
void test_follow(int64_t n, int64_t dim, const std::string& where) {
  Array<S> fast(n * dim), slow(n * dim), both((n + 1) / 2 * 2 * dim);
  Array<int32_t> followed(n);
  Array<int64_t> rows((n + 1) / 2);
  for (int64_t i = 0; i < n * dim; ++i) fast[i] = S(i % 7), slow[i] = S(i % 11 - 5);
  for (int64_t i = 0; i < n; ++i) followed[i] = int32_t(6 - i % 5);
  for (int64_t i = 0; i < rows.size(); ++i) rows[i] = 2 * i;
  kernels().of<S>().follow_rows({n, dim, fast.get(), slow.get(), followed.get(), rows.get(), 6, S(0.5), both.get()}, 0,
                                rows.size());
  for (int64_t i = 0; i < n * dim; ++i) {
    const int64_t row = i / dim, at = row / 2 * 2 * dim + i % dim;
    const double old = double(i % 11 - 5), to = double(i % 7), left = row % 2 ? 1 : std::ldexp(1, -int(row % 5));
    const double expected = to + left * (old - to);
    check(std::abs(double(slow[i]) - expected) < 1e-5, where + "a slow row that follows");
    check(row % 2 || (both[at] == S(to) && both[at + dim] == slow[i]), where + "fast and slow side by side");
  }
  for (int64_t row = 0; row < n; ++row) check(followed[row] == (row % 2 ? 6 - row % 5 : 6), where + "moves made");
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
      {dim, listed, values.get(), place.get(), members.get(), shares.get(), ends.get(), bags.get(), sums.get()}, 0, n);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t c = 0; c < dim; ++c) {
      double expected = 0;
      for (int64_t k = b ? ends[b - 1] : 0; k < ends[b]; ++k)
        if (members[k] % 2 == 0) expected += double(shares[k]) * double(values[members[k] * dim + c]);
      check(sums[b * dim + c] == S(expected), where + "a sum of a bag");  // of whole numbers
    }
}

}  // namespace gsfields::cpu
