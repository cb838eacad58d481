// Which pairs of a tile's list some pixels see: a Gaussian in each lane, for such pixels are often alone in their tile.
// The maths and its order are those of march() in tile.h, so that both stop at the same Gaussian. Included by isa.cpp.
#pragma once

#include "tile.h"

namespace {

constexpr int kSeenPixels = kTile * kTile;  // of a tile at a time

template <class S>
struct SeenScratch {
  alignas(64) S x[kBatch], y[kBatch], a[kBatch], b[kBatch], c[kBatch], opacity[kBatch];
  S T[kSeenPixels];  // 0 once the pixel accepts no more Gaussians
};

// Gaussians of the tile's list, and to the end of the last vector some that no pixel sees.
template <class S, int L>
GSF_HD void load_splats(const BlendArgs<S>& a, const int32_t* ids, int count, SeenScratch<S>& s) {
  for (int j = 0; j < count; ++j) {
    const int64_t ahead = ids[math::min(j + kPrefetch, count - 1)], id = ids[j];
    __builtin_prefetch(a.means2d + 2 * ahead), __builtin_prefetch(a.conics + 3 * ahead);
    __builtin_prefetch(a.opacities + ahead);
    const auto p =
        math::make_pixel_splat<S>(a.means2d[2 * id], a.means2d[2 * id + 1], a.conics + 3 * id, a.opacities[id]);
    s.x[j] = p.x, s.y[j] = p.y, s.a[j] = p.a, s.b[j] = p.b, s.c[j] = p.c, s.opacity[j] = p.opacity;
  }
  for (int j = count; j % L; ++j) s.x[j] = s.y[j] = s.a[j] = s.b[j] = s.c[j] = s.opacity[j] = 0;
}

// Marks what one pixel sees of `count` Gaussians; returns its transmittance behind them, or 0.
template <class S, int L>
GSF_HD S see(const SeenScratch<S>& s, S x, S y, S T, int count, bool* seen) {
  using V = typename Lanes<S, L>::V;
  for (int j = 0; j < count; j += L) {
    const math::PixelSplat<V> p = {load<V>(s.x + j), load<V>(s.y + j), load<V>(s.a + j),
                                   load<V>(s.b + j), load<V>(s.c + j), load<V>(s.opacity + j)};
    const V dx = x - p.x, dy = y - p.y, scaled = math::scaled_exponent(p, dx, dy);
    const V alpha = math::pair_alpha<S>(p.opacity, scaled, exp_negative(scaled));
    if (!any(alpha > V{})) continue;
    for (int l = 0; l < L; ++l) {
      if (!(alpha[l] > 0)) continue;
      seen[j + l] = true;
      T = T * (1 - alpha[l]);
      if (T <= S(math::kTransmittanceMin)) return 0;
    }
  }
  return T;
}

// seen: [pairs], of all tiles; only those seen are written.
template <class S, int L>
void seen_tile(const BlendArgs<S>& a, int64_t tile, bool* seen, void* scratch) {
  auto& s = *static_cast<SeenScratch<S>*>(scratch);
  const int64_t begin = a.tile_offsets[tile], end = a.tile_offsets[tile + 1], last = a.pixel_offsets[tile + 1];
  for (int64_t row = a.pixel_offsets[tile]; row < last; row += kSeenPixels) {
    const int pixels = int(math::min(last - row, int64_t(kSeenPixels)));
    for (int k = 0; k < pixels; ++k) s.T[k] = 1;
    bool open = true;
    for (int64_t first = begin; first < end && open; first += kBatch) {
      const int count = int(math::min(int64_t(kBatch), end - first));
      load_splats<S, L>(a, a.ids + first, count, s);
      open = false;
      for (int k = 0; k < pixels; ++k) {
        if (s.T[k] == 0) continue;
        const int64_t pixel = a.pixels[row + k] - a.first_pixel;
        const S x = S(pixel % a.width) + S(0.5), y = S(pixel / a.width) + S(0.5);
        s.T[k] = see<S, L>(s, x, y, s.T[k], count, seen + first);
        open |= s.T[k] != 0;
      }
    }
  }
}

template <class S>
int64_t seen_scratch() {
  return sizeof(SeenScratch<S>);
}

}  // namespace
