// Moving Gaussians for the C++ tests: what the response is given and what it makes, in arrays of exactly the size that
// the interface asks for. The numbers are the same in float and in double.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "kernel_args.h"

namespace gsfields {

template <class S>
struct Moving {
  static constexpr S kUnwritten = S(-1e30);
  int64_t n, rank;
  bool posed;
  std::mt19937 engine{5};
  std::vector<S> means, quats, logits, colors, response, code, windows, pose, time;
  std::vector<S> means_t, quats_t, opacities_t, colors_t;
  std::vector<S> v_means_t, v_quats_t, v_opacities_t, v_colors_t;
  std::vector<S> v_means, v_quats, v_logits, v_colors, v_windows, v_response, v_codes, v_code;

  // Every third Gaussian lives at another time. parts: of v_codes.
  Moving(int64_t n_, int64_t rank_, bool posed_, int64_t parts) : n(n_), rank(rank_), posed(posed_) {
    means = given(3 * n), quats = given(4 * n), logits = given(n), colors = given(3 * n), code = given(rank);
    response = given(7 * n * rank), windows = given(2 * n);
    for (S& x : code) x = S(float(x) / std::sqrt(float(rank)));  // too little to hide what lives
    for (int64_t i = 2; i < n; i += 3) windows[size_t(2 * i)] = 50;
    pose = {S(0.6f), 0, S(-0.8f), 0, 1, 2, 3}, time = {S(0.1f)};
    means_t = made(3 * n), quats_t = made(4 * n), opacities_t = made(n), colors_t = made(3 * n);
    v_means_t = given(3 * n), v_quats_t = given(4 * n), v_opacities_t = given(n), v_colors_t = given(3 * n);
    v_means = made(3 * n), v_quats = made(4 * n), v_logits = made(n), v_colors = made(3 * n), v_windows = made(2 * n);
    v_response = made(7 * n * rank), v_codes = made(parts * rank), v_code = made(rank);
  }

  RespondArgs<S> args() {
    RespondArgs<S> a{};
    a.n = n, a.rank = rank, a.time = time.data(), a.softness = S(0.5f), a.pose = posed ? pose.data() : nullptr;
    a.means = means.data(), a.quats = quats.data(), a.logits = logits.data(), a.colors = colors.data();
    a.response = response.data(), a.code = code.data(), a.windows = windows.data();
    a.means_t = means_t.data(), a.quats_t = quats_t.data();
    a.opacities_t = opacities_t.data(), a.colors_t = colors_t.data();
    return a;
  }
  RespondBackwardArgs<S> backward_args(bool to_response = true, bool to_code = true) {
    RespondBackwardArgs<S> a{};
    a.forward = args();
    a.v_means_t = v_means_t.data(), a.v_quats_t = v_quats_t.data();
    a.v_opacities_t = v_opacities_t.data(), a.v_colors_t = v_colors_t.data();
    a.v_means = v_means.data(), a.v_quats = v_quats.data(), a.v_logits = v_logits.data();
    a.v_colors = v_colors.data(), a.v_windows = v_windows.data();
    a.v_response = to_response ? v_response.data() : nullptr, a.v_codes = to_code ? v_codes.data() : nullptr;
    return a;
  }
  std::vector<std::vector<double>> results() const {
    std::vector<std::vector<double>> all;
    for (const auto* made : {&means_t, &quats_t, &opacities_t, &colors_t, &v_means, &v_quats, &v_logits, &v_colors,
                             &v_windows, &v_response, &v_code})
      all.emplace_back(made->begin(), made->end());
    return all;
  }

 private:
  std::vector<S> given(int64_t count) {
    std::vector<S> numbers(static_cast<size_t>(count));
    for (S& x : numbers) x = std::uniform_real_distribution<float>(-1, 1)(engine);
    return numbers;
  }
  static std::vector<S> made(int64_t count) { return std::vector<S>(static_cast<size_t>(count), kUnwritten); }
};

}  // namespace gsfields
