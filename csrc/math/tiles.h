// Where a splat goes in binning: the tiles that it reaches, as one span of columns per row of tiles, and its place by
// depth.
#pragma once

#include <cstdint>
#include <type_traits>

#include "bounds.h"

namespace gsfields::math {

// Of rows or columns of tiles; end <= begin where there are none.
struct Range {
  int begin, end;
  GSF_HD int size() const { return max(end - begin, 0); }
};

// Pixel centres lie at integers + 1/2; the hundredth of a pixel covers the rounding of large coordinates.
constexpr double kCentre = 0.5, kSlack = 0.01;
constexpr float kInvTile = 1.0f / kTile;
static_assert(kInvTile * kTile == 1, "a division by kTile is exact as a product");

// floor(x) kept within [0, limit]; NaN gives 0.
template <class S>
GSF_HD int clamp_floor(S x, int limit) {
  return x > S(0) ? int(min(floor(x), S(limit))) : 0;
}

// What a splat reaches: its ellipse, within a box of rx pixels to either side.
template <class S>
struct Footprint {
  Ellipse<S> ellipse;
  S x, y, rx;
  Range rows;
};

template <class S>
GSF_HD Footprint<S> make_footprint(S x, S y, S rx, S ry, S a, S b, S c, S opacity, int tiles_y) {
  const Ellipse<S> e = make_ellipse(a, b, c, ellipse_level(opacity), determinant(a, b, c));
  const S reach = min(ry, e.reach), centre = S(kCentre), slack = S(kSlack), inv_tile = S(kInvTile);
  return {e,
          x,
          y,
          rx,
          {clamp_floor((y - reach - centre - slack) * inv_tile, tiles_y),
           clamp_floor((y + reach - centre + slack) * inv_tile + S(1), tiles_y)}};
}

// The columns that the splat reaches in one of its rows.
template <class S>
GSF_HD Range columns(const Footprint<S>& f, int row, int tiles_x) {
  const S centre = S(kCentre), slack = S(kSlack), inv_tile = S(kInvTile);
  const S top = S(row * kTile) + centre - f.y;
  S left = -f.rx, right = f.rx;
  if (f.ellipse.det > S(0)) slab_interval(f.ellipse, top, top + S(kTile - 1), left, right);
  const S last = floor(f.x + right - centre + slack);
  return {clamp_floor(ceil(f.x + left - centre - slack) * inv_tile, tiles_x),
          last >= S(0) ? clamp_floor(last * inv_tile + S(1), tiles_x) : 0};
}

// An unsigned integer that sorts like the number it comes from.
template <class S>
GSF_HD auto sort_key(S depth) {
  using Key = std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>;
  const Key bits = __builtin_bit_cast(Key, depth), sign = Key(1) << (8 * sizeof(S) - 1);
  return Key(bits & sign ? ~bits : bits | sign);
}

}  // namespace gsfields::math
