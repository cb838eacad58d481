// Where a splat can reach alpha >= 1/255: the ellipse a dx² + 2 b dx dy + c dy² <= q around its centre, with
// q = 2 ln(255 opacity). Bounds must never cut a pixel that the blend would touch, so q carries a small margin
// that covers the rounding of the blend.
#pragma once

#include "common.h"

namespace gsfields::math {

template <class T>
GSF_HD T ellipse_level(T opacity) {
  return 2 * log(T(255 * opacity)) + 1.0f / 1024;
}

// The ellipse of one splat, all relative to its centre.
template <class T>
struct Ellipse {
  T inv_a, b, aq, det;  // 1/a, b, a·q, a·c − b²
  T widest;             // dy of the right-most point, −b sqrt(q / (c det)); the left-most lies at −widest
  T reach;              // dy of the lowest point, sqrt(a q / det); infinite if rounding left no closed ellipse
};

// det = a c - b² must be given to full precision although the products nearly cancel for long thin splats: see
// determinant().
template <class T>
GSF_HD Ellipse<T> make_ellipse(T a, T b, T c, T q, T det) {
  const auto closed = det > T{};
  const T zero = {}, one = zero + 1;
  det = select(closed, det, one);
  return {1 / a,
          b,
          a * q,
          select(closed, det, zero),
          select(closed, T(-b * sqrt(T(q / (c * det)))), zero),
          select(closed, sqrt(T(a * q / det)), T(one / zero))};
}

// a c - b² of float32 factors in doubles, which hold both products exactly. On a GPU, where doubles are slow, by
// Kahan's algorithm with fused multiply-adds, to 2 units in the last place (Jeannerod, Louvet and Muller 2013).
template <class S>
GSF_HD S determinant(S a, S b, S c) {
#if defined(__CUDACC__) || defined(GSF_EMULATOR)
  const S bb = b * b;
  return fma(a, c, -bb) + fma(-b, b, bb);
#else
  return S(double(a) * double(c) - double(b) * double(b));
#endif
}

// The interval of dx that the ellipse covers where lo <= dy <= hi, given that it reaches there.
template <class T>
GSF_HD void slab_interval(const Ellipse<T>& e, T lo, T hi, T& left, T& right) {
  const T dy_right = max(lo, min(hi, e.widest)), dy_left = max(lo, min(hi, T(-e.widest)));
  right = (-e.b * dy_right + sqrt(max(T(e.aq - e.det * dy_right * dy_right), T{}))) * e.inv_a;
  left = (-e.b * dy_left - sqrt(max(T(e.aq - e.det * dy_left * dy_left), T{}))) * e.inv_a;
}

}  // namespace gsfields::math
