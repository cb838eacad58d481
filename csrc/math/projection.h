// Perspective projection of a 3D Gaussian to the image plane (EWA splatting, Zwicker et al. 2001, as used by
// 3D Gaussian Splatting, Kerbl et al. 2023, section 4), and its derivative.
//
// The 2D covariance is formed as B Bᵀ with B = J W R(q) diag(s), so it is positive semi-definite in any precision.
#pragma once

#include <cstdint>

#include "bounds.h"
#include "common.h"

namespace gsfields::math {

// One pinhole view: world→camera rotation (row-major) and translation, intrinsics in pixels.
template <class S>
struct View {
  S R[9], t[3];
  S fx, fy, cx, cy;
  S width, height;
  S near_plane, far_plane, eps2d;
  // x/z and y/z are clamped to [-neg, pos] inside the Jacobian only: 1.3 times the half field of view, measured
  // from the principal point. Outside, the linearisation of the perspective would blow the Gaussian up.
  S neg_x, pos_x, neg_y, pos_y;
};

// Whether a view can be projected to: all numbers finite, positive focal lengths, no skew.
template <class S>
GSF_HD bool usable_camera(const S* viewmat, const S* K) {
  bool usable = K[0] > 0 && K[4] > 0 && K[1] == 0 && K[3] == 0;
  for (int i = 0; i < 16; ++i) usable &= finite(viewmat[i]);
  for (int i = 0; i < 9; ++i) usable &= finite(K[i]);
  return usable;
}

template <class S>
GSF_HD View<S> make_view(const S* viewmat, const S* K, int width, int height, S near_plane, S far_plane, S eps2d) {
  View<S> v;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) v.R[3 * i + j] = viewmat[4 * i + j];
    v.t[i] = viewmat[4 * i + 3];
  }
  v.fx = K[0], v.fy = K[4], v.cx = K[2], v.cy = K[5];
  v.width = S(width), v.height = S(height);
  v.near_plane = near_plane, v.far_plane = far_plane, v.eps2d = eps2d;
  const S margin_x = S(0.15) * v.width / v.fx, margin_y = S(0.15) * v.height / v.fy;
  v.neg_x = v.cx / v.fx + margin_x, v.pos_x = (v.width - v.cx) / v.fx + margin_x;
  v.neg_y = v.cy / v.fy + margin_y, v.pos_y = (v.height - v.cy) / v.fy + margin_y;
  return v;
}

// Rotation matrix of a unit quaternion (w, x, y, z), row-major.
template <class T>
GSF_HD void rotation(const T* q, T* R) {
  const T w = q[0], x = q[1], y = q[2], z = q[3];
  R[0] = T(1 - 2 * (y * y + z * z)), R[1] = 2 * (x * y - w * z), R[2] = 2 * (x * z + w * y);
  R[3] = 2 * (x * y + w * z), R[4] = T(1 - 2 * (x * x + z * z)), R[5] = 2 * (y * z - w * x);
  R[6] = 2 * (x * z - w * y), R[7] = 2 * (y * z + w * x), R[8] = T(1 - 2 * (x * x + y * y));
}

// Gradient with respect to the unit quaternion, given the gradient G of its rotation matrix.
template <class T>
GSF_HD void rotation_backward(const T* q, const T* G, T* v_q) {
  const T w = q[0], x = q[1], y = q[2], z = q[3];
  v_q[0] = 2 * (x * (G[7] - G[5]) + y * (G[2] - G[6]) + z * (G[3] - G[1]));
  v_q[1] = 2 * (w * (G[7] - G[5]) + y * (G[1] + G[3]) + z * (G[2] + G[6]) - 2 * x * (G[4] + G[8]));
  v_q[2] = 2 * (w * (G[2] - G[6]) + x * (G[1] + G[3]) + z * (G[5] + G[7]) - 2 * y * (G[0] + G[8]));
  v_q[3] = 2 * (w * (G[3] - G[1]) + x * (G[2] + G[6]) + y * (G[5] + G[7]) - 2 * z * (G[0] + G[4]));
}

// Everything between a Gaussian's parameters and its 2D covariance; the backward pass rebuilds it.
template <class T>
struct Splat {
  T p[3];                 // centre in the camera frame
  T unit_q[4];            // normalised quaternion
  T inv_norm;             // 1 / |q|
  T Rq[9];                // rotation of the Gaussian, world frame
  T M[9];                 // Rq diag(s)
  T A[9];                 // W M: half covariance in the camera frame
  T tx, ty;               // x, y clamped to the (enlarged) frustum
  T j00, j02, j11, j12;   // the Jacobian of the perspective
  T B[6];                 // J A: half covariance in the image
  T cov_a, cov_b, cov_c;  // 2D covariance without eps2d
};

template <class T, class S>
GSF_HD Splat<T> make_splat(const View<S>& v, const T* mean, const T* quat, const T* scale) {
  Splat<T> g;
  for (int i = 0; i < 3; ++i)
    g.p[i] = v.R[3 * i] * mean[0] + v.R[3 * i + 1] * mean[1] + v.R[3 * i + 2] * mean[2] + v.t[i];
  const T norm2 = quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3];
  g.inv_norm = 1 / sqrt(norm2);
  for (int i = 0; i < 4; ++i) g.unit_q[i] = quat[i] * g.inv_norm;
  rotation(g.unit_q, g.Rq);
  for (int i = 0; i < 9; ++i) g.M[i] = g.Rq[i] * scale[i % 3];
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      g.A[3 * i + j] = v.R[3 * i] * g.M[j] + v.R[3 * i + 1] * g.M[3 + j] + v.R[3 * i + 2] * g.M[6 + j];
  const T rz = 1 / g.p[2];
  g.tx = g.p[2] * min(splat<T>(v.pos_x), max(splat<T>(-v.neg_x), T(g.p[0] * rz)));
  g.ty = g.p[2] * min(splat<T>(v.pos_y), max(splat<T>(-v.neg_y), T(g.p[1] * rz)));
  g.j00 = v.fx * rz, g.j11 = v.fy * rz;
  g.j02 = -g.j00 * g.tx * rz, g.j12 = -g.j11 * g.ty * rz;
  for (int j = 0; j < 3; ++j) {
    g.B[j] = g.j00 * g.A[j] + g.j02 * g.A[6 + j];
    g.B[3 + j] = g.j11 * g.A[3 + j] + g.j12 * g.A[6 + j];
  }
  g.cov_a = dot3(g.B, g.B), g.cov_b = dot3(g.B, g.B + 3), g.cov_c = dot3(g.B + 3, g.B + 3);
  return g;
}

// sqrt(det Σ / det(Σ + eps2d I)): keeps a Gaussian's energy when eps2d widens it (Mip-Splatting, Yu et al. 2024).
template <class T, class S>
GSF_HD T compensation(const Splat<T>& g, S eps2d) {
  const T det0 = max(T(g.cov_a * g.cov_c - g.cov_b * g.cov_b), T{});
  const T det = (g.cov_a + eps2d) * (g.cov_c + eps2d) - g.cov_b * g.cov_b;
  return sqrt(T(det0 / det));
}

// One Gaussian in the image; zeros where it is culled.
template <class T>
struct Projected {
  T mean2d[2], depth, conic[3], opacity;
  T extent[2];  // half extents of the ellipse alpha >= 1/255, pixels
};

// Returns what is visible: a bool, or a mask of lanes.
template <class T, class S>
GSF_HD auto project(const View<S>& v, const Splat<T>& g, T opacity, bool antialiased, Projected<T>& out) {
  const T rz = 1 / g.p[2];
  const T x = v.fx * g.p[0] * rz + v.cx, y = v.fy * g.p[1] * rz + v.cy;
  const T cov_a = g.cov_a + v.eps2d, cov_c = g.cov_c + v.eps2d, det = cov_a * cov_c - g.cov_b * g.cov_b;
  const T inv_det = 1 / det;
  const T a = cov_c * inv_det, b = -g.cov_b * inv_det, c = cov_a * inv_det;
  if (antialiased) opacity *= compensation(g, v.eps2d);
  // The half extents lie on the covariance's diagonal.
  const T level = ellipse_level(opacity);
  const T rx = sqrt(T(level * cov_a)), ry = sqrt(T(level * cov_c));
  const auto visible = (g.p[2] > v.near_plane) & (g.p[2] < v.far_plane) & (opacity >= S(kAlphaMin)) & (det > S(0)) &
                       finite(a) & finite(b) & finite(c) & finite(rx) & finite(ry) & finite(opacity) & (x + rx > S(0)) &
                       (x - rx < v.width) & (y + ry > S(0)) & (y - ry < v.height);
  const T zero = {};
  out.mean2d[0] = select(visible, x, zero), out.mean2d[1] = select(visible, y, zero);
  out.depth = select(visible, g.p[2], zero);
  out.conic[0] = select(visible, a, zero), out.conic[1] = select(visible, b, zero);
  out.conic[2] = select(visible, c, zero);
  out.opacity = select(visible, opacity, zero);
  out.extent[0] = select(visible, rx, zero), out.extent[1] = select(visible, ry, zero);
  return visible;
}

// A scalar half extent as a radius: whole pixels, 0 only for what is culled.
template <class S>
GSF_HD int32_t radius(S extent) {
  return int32_t(min(ceil(extent), S(1 << 30)));
}

// Gradients arriving at, and leaving, the projection of one Gaussian in one view.
template <class T>
struct ImageGrads {
  T x, y, depth, conic[3], opacity;
};
template <class T>
struct GaussianGrads {
  T mean[3], quat[4], scale[3], opacity;
  T R[9], t[3];  // of the view
};

template <class T, class S>
GSF_HD void project_backward(const View<S>& v, const Splat<T>& g, const T* mean, const T* scale, T opacity,
                             bool antialiased, const ImageGrads<T>& in, GaussianGrads<T>& out) {
  const T e_a = g.cov_a + v.eps2d, e_c = g.cov_c + v.eps2d, b = g.cov_b;
  const T inv_det = 1 / T(e_a * e_c - b * b);

  // conic = inverse covariance Y: dΣ = -Y G Y with G the symmetric matrix of the conic's gradient.
  const T ya = e_c * inv_det, yb = -b * inv_det, yc = e_a * inv_det;
  const T ga = in.conic[0], gb = in.conic[1] / 2, gc = in.conic[2];
  const T ya_g = ya * ga + yb * gb, ya_h = ya * gb + yb * gc, yb_g = yb * ga + yc * gb, yb_h = yb * gb + yc * gc;
  T v_a = -(ya_g * ya + ya_h * yb), v_c = -(yb_g * yb + yb_h * yc), v_b = -2 * (ya_g * yb + ya_h * yc);

  out.opacity = in.opacity;
  if (antialiased) {
    const T comp = compensation(g, v.eps2d);
    out.opacity = in.opacity * comp;
    // A degenerate covariance has zero compensation and an infinite slope: no gradient there.
    const T v_comp = select(comp > T{}, T(in.opacity * opacity / 2), T{});
    const T per_det0 = v_comp * inv_det / select(comp > T{}, comp, T(T{} + 1)), per_det = -v_comp * comp * inv_det;
    v_a += per_det0 * g.cov_c + per_det * e_c;
    v_c += per_det0 * g.cov_a + per_det * e_a;
    v_b -= 2 * b * (per_det0 + per_det);
  }

  T v_B[6], v_A[9];
  for (int j = 0; j < 3; ++j) {
    v_B[j] = 2 * v_a * g.B[j] + v_b * g.B[3 + j];
    v_B[3 + j] = 2 * v_c * g.B[3 + j] + v_b * g.B[j];
    v_A[j] = g.j00 * v_B[j];
    v_A[3 + j] = g.j11 * v_B[3 + j];
    v_A[6 + j] = g.j02 * v_B[j] + g.j12 * v_B[3 + j];
  }
  const T v_j00 = dot3(g.A, v_B), v_j02 = dot3(g.A + 6, v_B);
  const T v_j11 = dot3(g.A + 3, v_B + 3), v_j12 = dot3(g.A + 6, v_B + 3);

  const T x = g.p[0], y = g.p[1], z = g.p[2], rz = 1 / z;
  T v_p[3];
  v_p[0] = v.fx * rz * in.x, v_p[1] = v.fy * rz * in.y;
  v_p[2] = in.depth - rz * (v_p[0] * x + v_p[1] * y) - rz * (g.j00 * v_j00 + g.j11 * v_j11);
  // j02 = -fx tx / z²: tx is x inside the frustum, and z times a constant where it was clamped.
  const auto in_x = (x * rz <= v.pos_x) & (x * rz >= -v.neg_x), in_y = (y * rz <= v.pos_y) & (y * rz >= -v.neg_y);
  const T slope_x = g.j02 * rz * v_j02, slope_y = g.j12 * rz * v_j12;
  v_p[0] -= select(in_x, T(g.j00 * rz * v_j02), T{}), v_p[1] -= select(in_y, T(g.j11 * rz * v_j12), T{});
  v_p[2] -= select(in_x, T(2 * slope_x), slope_x) + select(in_y, T(2 * slope_y), slope_y);

  T v_M[9], v_Rq[9], v_unit[4];
  for (int i = 0; i < 3; ++i) {
    out.mean[i] = v.R[i] * v_p[0] + v.R[3 + i] * v_p[1] + v.R[6 + i] * v_p[2];
    out.t[i] = v_p[i];
    for (int j = 0; j < 3; ++j) {
      v_M[3 * i + j] = v.R[i] * v_A[j] + v.R[3 + i] * v_A[3 + j] + v.R[6 + i] * v_A[6 + j];
      out.R[3 * i + j] = dot3(v_A + 3 * i, g.M + 3 * j) + v_p[i] * mean[j];
    }
  }
  for (int j = 0; j < 3; ++j) {
    out.scale[j] = g.Rq[j] * v_M[j] + g.Rq[3 + j] * v_M[3 + j] + g.Rq[6 + j] * v_M[6 + j];
    for (int i = 0; i < 3; ++i) v_Rq[3 * i + j] = scale[j] * v_M[3 * i + j];
  }
  rotation_backward(g.unit_q, v_Rq, v_unit);
  const T along = g.unit_q[0] * v_unit[0] + dot3(g.unit_q + 1, v_unit + 1);
  for (int i = 0; i < 4; ++i) out.quat[i] = (v_unit[i] - g.unit_q[i] * along) * g.inv_norm;
}

}  // namespace gsfields::math
