// One (pixel, Gaussian) pair of the blend and its derivative (Kerbl et al. 2023, equation 3 and appendix A).
//
// With d = pixel - mean and σ = ½ dᵀ conic d: alpha = min(0.99, opacity exp(-σ)), and pairs below 1/255 are skipped.
// A Gaussian weighs w = alpha T in a pixel, T being the product of (1 - alpha) over the Gaussians in front.
#pragma once

#include "bounds.h"
#include "common.h"

namespace gsfields::math {

// Kernels in float evaluate 2^-x, those in double e^-x: x is σ times this.
template <class S>
constexpr S kExpScale = S(1);
template <>
constexpr float kExpScale<float> = 1.44269504088896340736f;  // log2(e)

// What a pixel needs of a splat: σ · kExpScale = a dx² + b dx dy + c dy².
template <class S>
struct PixelSplat {
  S x, y, a, b, c, opacity;
};

// S: the scalar of T, which may be lanes.
template <class S, class T>
GSF_HD PixelSplat<T> make_pixel_splat(T x, T y, const T* conic, T opacity) {
  const S k = kExpScale<S>;
  return {x, y, k / 2 * conic[0], k * conic[1], k / 2 * conic[2], opacity};
}

template <class T, class S>
GSF_HD T scaled_exponent(const PixelSplat<S>& p, T dx, T dy) {
  return dx * (p.a * dx + p.b * dy) + p.c * dy * dy;
}

// What tells whether a splat matters in a box of pixels: the slopes of the lines on which its exponent is least along
// x and along y, and the scaled exponent at alpha = 1/255.
template <class S>
struct Reach {
  S b_over_a, b_over_c, level;
};

// An ellipse that rounding did not leave closed reaches everything.
template <class S>
GSF_HD Reach<S> make_reach(const S* conic, S opacity) {
  const bool closed = determinant(conic[0], conic[1], conic[2]) > 0;
  return {conic[1] / conic[0], conic[1] / conic[2], closed ? kExpScale<S> / 2 * ellipse_level(opacity) : S(1) / S(0)};
}

// Whether alpha may be 1/255 or more at a point of the box [left, right] x [top, bottom]. The least exponent of a
// convex form lies on the side of the box that faces the centre, in x or in y (or at the centre).
template <class S>
GSF_HD bool reaches(const PixelSplat<S>& p, const Reach<S>& r, S left, S right, S top, S bottom) {
  left -= p.x, right -= p.x, top -= p.y, bottom -= p.y;
  const S x = max(left, min(right, S(0))), y = max(top, min(bottom, S(0)));
  const S least_y = max(top, min(bottom, -r.b_over_c * x)), least_x = max(left, min(right, -r.b_over_a * y));
  return min(scaled_exponent(p, x, least_y), scaled_exponent(p, least_x, y)) <= r.level;
}

// alpha, or 0 where the pair is skipped; falloff = exp(-σ). O: S, the scalar of T, or T.
template <class S, class T, class O>
GSF_HD T pair_alpha(O opacity, T scaled, T falloff) {
  const T alpha = min(T(opacity * falloff), splat<T>(S(kAlphaMax)));
  return select((alpha >= S(kAlphaMin)) & (scaled >= S(0)), alpha, T{});
}
template <class T, class S>
GSF_HD T pair_alpha(const PixelSplat<S>& p, T scaled, T falloff) {
  return pair_alpha<S>(p.opacity, scaled, falloff);
}

// dL/dσ of a pair, given s = <values of the Gaussian, dL/dpixel> and what lies behind it: `behind`, the sum of w_j s_j
// over the Gaussians j behind, plus T_end (<background, dL/dpixel> + dL/dT_end). No vector of channels is needed:
//   dL/dalpha = T s - behind / (1 - alpha).
// A clamped alpha does not move with the exponent. 0 for alpha 0. inverse = 1 / (1 - alpha).
template <class S, class T>
GSF_HD T pair_gradient(T alpha, T inverse, T transmittance, T s, T behind) {
  return select(alpha < S(kAlphaMax), T(-alpha * (transmittance * s - behind * inverse)), T{});
}

// Sums over the pixels of a Gaussian, from which all its gradients follow: moments of q = dL/dσ about its centre, and
// the sums of |dL/dmean| per axis (times kExpScale).
enum Moment { kQ, kQx, kQy, kQxx, kQxy, kQyy, kAbsX, kAbsY, kMoments };

template <class T, class S>
GSF_HD void pair_moments(const PixelSplat<S>& p, T dx, T dy, T q, T* m) {
  const T qx = q * dx, qy = q * dy;
  m[kQ] = q, m[kQx] = qx, m[kQy] = qy;
  m[kQxx] = qx * dx, m[kQxy] = qx * dy, m[kQyy] = qy * dy;
  // dσ/dmean = -conic d; the coefficients are those of σ, so halved on the conic's diagonal.
  const T gx = 2 * p.a * qx + p.b * qy, gy = p.b * qx + 2 * p.c * qy;
  m[kAbsX] = select(gx < S(0), T(-gx), gx), m[kAbsY] = select(gy < S(0), T(-gy), gy);
}

// dσ/dmean = -conic d, dσ/dconic = (½ dx², dx dy, ½ dy²), and alpha = opacity exp(-σ) gives dL/dopacity = -Σq /
// opacity. absgrad may be null.
template <class S>
GSF_HD void gradients_from_moments(const S* m, const S* conic, S opacity, S* v_mean, S* v_conic, S* v_opacity,
                                   S* absgrad) {
  v_mean[0] = -(conic[0] * m[kQx] + conic[1] * m[kQy]);
  v_mean[1] = -(conic[1] * m[kQx] + conic[2] * m[kQy]);
  v_conic[0] = S(0.5) * m[kQxx], v_conic[1] = m[kQxy], v_conic[2] = S(0.5) * m[kQyy];
  *v_opacity = m[kQ] == 0 ? S(0) : -m[kQ] / opacity;
  if (!absgrad) return;
  absgrad[0] = m[kAbsX] / kExpScale<S>, absgrad[1] = m[kAbsY] / kExpScale<S>;
}

}  // namespace gsfields::math
