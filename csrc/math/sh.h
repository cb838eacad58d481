// Real spherical harmonics up to degree 3 in the order and with the signs of 3D Gaussian Splatting
// (Kerbl et al. 2023); polynomial forms after Sloan 2013, "Efficient Spherical Harmonic Evaluation".
// S is a scalar.
#pragma once

#include "common.h"

namespace gsfields::math {

constexpr int kMaxShDegree = 3;

// Y[(degree + 1)²] at the unit direction (x, y, z).
template <class S>
GSF_HD void sh_basis(int degree, S x, S y, S z, S* Y) {
  Y[0] = S(0.2820947917738781);
  if (degree < 1) return;
  const S c1 = S(0.48860251190292);
  Y[1] = -c1 * y, Y[2] = c1 * z, Y[3] = -c1 * x;
  if (degree < 2) return;
  const S xx = x * x, yy = y * y, zz = z * z;
  const S c2 = S(1.092548430592079), c20 = S(0.31539156525252), c22 = S(0.5462742152960395);
  Y[4] = c2 * x * y, Y[5] = -c2 * y * z, Y[6] = c20 * (2 * zz - xx - yy);
  Y[7] = -c2 * x * z, Y[8] = c22 * (xx - yy);
  if (degree < 3) return;
  const S c33 = S(0.5900435899266435), c31 = S(0.4570457994644658);
  Y[9] = -c33 * y * (3 * xx - yy), Y[10] = S(2.890611442640554) * x * y * z;
  Y[11] = -c31 * y * (4 * zz - xx - yy), Y[12] = S(0.3731763325901154) * z * (2 * zz - 3 * xx - 3 * yy);
  Y[13] = -c31 * x * (4 * zz - xx - yy), Y[14] = S(1.445305721320277) * z * (xx - yy);
  Y[15] = -c33 * x * (xx - 3 * yy);
}

// The unit vector along d; false for a zero or non-finite one.
template <class S>
GSF_HD bool unit(const S* d, S* u, S& inv_norm) {
  const S norm2 = dot3(d, d);
  if (!(norm2 > 0) || !finite(norm2)) return false;
  inv_norm = 1 / sqrt(norm2);
  for (int i = 0; i < 3; ++i) u[i] = d[i] * inv_norm;
  return true;
}

// The gradient with respect to d, given the gradient v_u with respect to the unit vector u along it.
template <class S>
GSF_HD void unit_backward(const S* u, S inv_norm, const S* v_u, S* v_d) {
  const S along = dot3(u, v_u);
  for (int i = 0; i < 3; ++i) v_d[i] = (v_u[i] - u[i] * along) * inv_norm;
}

// Gradient of sum_k s[k] Y[k] with respect to the unit direction, as if x, y, z were free.
template <class S>
GSF_HD void sh_direction_grad(int degree, S x, S y, S z, const S* s, S* grad) {
  grad[0] = grad[1] = grad[2] = 0;
  if (degree < 1) return;
  const S c1 = S(0.48860251190292);
  grad[0] = -c1 * s[3], grad[1] = -c1 * s[1], grad[2] = c1 * s[2];
  if (degree < 2) return;
  const S c2 = S(1.092548430592079), c20 = S(0.31539156525252), c22 = S(0.5462742152960395);
  grad[0] += c2 * (y * s[4] - z * s[7]) - 2 * x * (c20 * s[6] - c22 * s[8]);
  grad[1] += c2 * (x * s[4] - z * s[5]) - 2 * y * (c20 * s[6] + c22 * s[8]);
  grad[2] += -c2 * (y * s[5] + x * s[7]) + 4 * c20 * z * s[6];
  if (degree < 3) return;
  const S xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  const S c33 = S(0.5900435899266435), c31 = S(0.4570457994644658), c32 = S(2.890611442640554);
  const S c30 = S(0.3731763325901154), c34 = S(1.445305721320277);
  grad[0] += -6 * c33 * xy * s[9] + c32 * yz * s[10] + 2 * c31 * xy * s[11] - 6 * c30 * xz * s[12] -
             c31 * (4 * zz - 3 * xx - yy) * s[13] + 2 * c34 * xz * s[14] - 3 * c33 * (xx - yy) * s[15];
  grad[1] += -3 * c33 * (xx - yy) * s[9] + c32 * xz * s[10] - c31 * (4 * zz - xx - 3 * yy) * s[11] -
             6 * c30 * yz * s[12] + 2 * c31 * xy * s[13] - 2 * c34 * yz * s[14] + 6 * c33 * xy * s[15];
  grad[2] += c32 * xy * s[10] - 8 * c31 * yz * s[11] + 3 * c30 * (2 * zz - xx - yy) * s[12] - 8 * c31 * xz * s[13] +
             c34 * (xx - yy) * s[14];
}

}  // namespace gsfields::math
