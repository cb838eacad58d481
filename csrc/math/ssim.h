// Structural similarity (Wang et al. 2004) with an 11x11 Gaussian window of sigma 1.5, as a separable filter and a
// formula at one point. S is a scalar.
#pragma once

#include "common.h"

namespace gsfields::math {

constexpr int kSsimWindow = 11;  // taps along each axis
constexpr int kSsimHalf = kSsimWindow / 2;

// exp(-k²/(2·1.5²)), normalised over k = -5..5.
GSF_HD constexpr double ssim_tap(int k) {
  constexpr double taps[kSsimHalf + 1] = {0.26601172486179436, 0.2130055377112537,   0.10936068950970002,
                                          0.03600077212843083, 0.007598758135239185, 0.00102838008447911};
  return taps[k < 0 ? -k : k];
}

// Sum over k = -5..5 of tap(k) at(k).
template <class S, class F>
GSF_HD S ssim_filter(F at) {
  S sum = S(ssim_tap(0)) * at(0);
  for (int k = 1; k <= kSsimHalf; ++k) sum += S(ssim_tap(k)) * (at(-k) + at(k));
  return sum;
}

// The similarity at a point and its derivatives by the window's means E[x], E[x²] and E[xy].
template <class S>
struct SsimPoint {
  S map, d_mu, d_var, d_cov;
};

// From the window's means E[x], E[y], E[x²] + E[y²], in which both variances go together, and E[xy].
template <class S>
GSF_HD SsimPoint<S> ssim_point(S mu1, S mu2, S squares, S product) {
  const S c1 = S(0.01 * 0.01), c2 = S(0.03 * 0.03);  // for images in [0, 1]
  const S both = mu1 * mu2, own = mu1 * mu1 + mu2 * mu2;
  const S A = 2 * both + c1, B = 2 * (product - both) + c2;
  const S C = own + c1, D = squares - own + c2;
  const S inv_CD = 1 / (C * D), ssim = A * B * inv_CD;
  // The variances contain E[x]², the covariance E[x]E[y].
  return {ssim, 2 * mu2 * (B - A) * inv_CD + 2 * mu1 * ssim * (C - D) * inv_CD, -ssim * C * inv_CD, 2 * A * inv_CD};
}

}  // namespace gsfields::math
