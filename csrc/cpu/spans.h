// Which tiles a splat reaches, as one span of columns per row of tiles. Included by isa.cpp.
#pragma once

#include "../math/bounds.h"
#include "kernels.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

// floor(x) kept within [0, limit]; NaN gives 0.
template <class S>
GSF_HD int clamp_floor(S x, int limit) {
  return x > 0 ? int(math::min(math::floor(x), S(limit))) : 0;
}

template <class S>
int64_t tile_spans(const SpanArgs<S>& a, const int32_t* ids, int64_t count, Span* spans, int32_t* spans_each) {
  constexpr S kInvTile = S(1) / math::kTile;
  // Pixel centres lie at integers + 1/2; the hundredth of a pixel covers the rounding of large coordinates.
  constexpr S kCentre = S(0.5), kSlack = S(0.01);
  Span* out = spans;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t id = ids[k];
    const S x = a.means2d[2 * id], y = a.means2d[2 * id + 1], *conic = a.conics + 3 * id;
    const S rx = S(a.radii[2 * id]), ry = S(a.radii[2 * id + 1]);
    const auto e = math::make_ellipse(conic[0], conic[1], conic[2], math::ellipse_level(a.opacities[id]),
                                      math::determinant(conic[0], conic[1], conic[2]));
    const bool closed = e.det > 0;
    const S reach = math::min(ry, e.reach);
    const int row_begin = clamp_floor((y - reach - kCentre - kSlack) * kInvTile, a.tiles_y);
    const int row_end = clamp_floor((y + reach - kCentre + kSlack) * kInvTile + 1, a.tiles_y);
    const Span* first = out;
    for (int row = row_begin; row < row_end; ++row) {
      const S lo = S(row * math::kTile) + kCentre - y;
      S left = -rx, right = rx;
      if (closed) math::slab_interval(e, lo, lo + (math::kTile - 1), left, right);
      const int begin = clamp_floor((math::ceil(x + left - kCentre - kSlack)) * kInvTile, a.tiles_x);
      const S last = math::floor(x + right - kCentre + kSlack);
      const int end = last >= 0 ? clamp_floor(last * kInvTile + 1, a.tiles_x) : 0;
      if (end > begin) *out++ = {row * a.tiles_x + begin, end - begin};
    }
    spans_each[k] = int32_t(out - first);
  }
  return out - spans;
}

}  // namespace
