// Where a splat can reach alpha >= 1/255: the ellipse a dx² + 2 b dx dy + c dy² <= q around its centre, with
// q = 2 ln(255 opacity). Bounds must never cut a pixel that the blend would touch, so q carries a small margin
// that covers the rounding of the blend.
#pragma once

#include "common.h"

namespace gsfields::math {

template <class S>
GSF_HD S ellipse_level(S opacity) {
  return 2 * log(S(255) * opacity) + S(1e-3);
}

// The part of the ellipse inside a horizontal slab lo <= dy <= hi, as an interval of dx (all relative to the
// centre). `widest` is the dy of the ellipse's right-most point; by symmetry the left-most lies at -widest.
template <class T>
struct Ellipse {
  T inv_a, b, aq, det;  // 1/a, b, a·q, a·c − b²
  T widest;             // −b sqrt(q / (c det))
};

// det is wanted to full precision although a·c and b² nearly cancel for long thin splats; a double holds both
// products of float32 factors exactly.
template <class S>
GSF_HD Ellipse<S> make_ellipse(S a, S b, S c, S q) {
  const S det = S(double(a) * double(c) - double(b) * double(b));
  return {1 / a, b, a * q, det, -b * sqrt(q / (c * det))};
}

template <class T>
GSF_HD void slab_interval(const Ellipse<T>& e, T lo, T hi, T& left, T& right) {
  const T dy_right = max(lo, min(hi, e.widest)), dy_left = max(lo, min(hi, T(-e.widest)));
  right = (-e.b * dy_right + sqrt(max(T(e.aq - e.det * dy_right * dy_right), T{}))) * e.inv_a;
  left = (-e.b * dy_left - sqrt(max(T(e.aq - e.det * dy_left * dy_left), T{}))) * e.inv_a;
}

}  // namespace gsfields::math
