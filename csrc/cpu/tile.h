// A tile of the image as the CPU kernels see it. Included by isa.cpp.
//
// Pixels are taken in groups of as many as a vector has lanes, normally blocks of 4x4, 4x2 or 2x2. For each group:
//   cull   which of the tile's Gaussians reach it (vectorised over Gaussians),
//   march  front to back: alpha, transmittance and weight of each survivor, for all pixels at once.
// What is done with the weights is in blend.h for few channels and in wide.h for many.
#pragma once

#include "../math/bounds.h"
#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;
using math::kTile;

constexpr int kBatch = 512;    // Gaussians of a tile culled and marched at a time
constexpr int kPrefetch = 16;  // how many Gaussians ahead to fetch when loading a batch

// What the march reads per Gaussian.
template <class S>
struct alignas(32) Entry : math::PixelSplat<S> {
  int32_t id;
};

// The block of pixels that one vector covers.
template <int L>
struct Block {
  static constexpr int width = L >= 8 ? 4 : 2;
  static constexpr int height = L / width;
  static constexpr int columns = kTile / width, rows = kTile / height, count = columns * rows;
  static_assert(count <= 64, "the culling masks hold 64 blocks");
};

// Ellipses of a batch, structure of arrays, centres relative to the tile's corner.
template <class S>
struct CullBatch {
  alignas(64) S x[kBatch], y[kBatch], inv_a[kBatch], b[kBatch], aq[kBatch], det[kBatch], widest[kBatch], reach[kBatch];
};

template <class S, int L>
void pack(const BlendArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  for (int64_t i = begin; i < end; i += L) {
    V mean[2], conic[3], opacity, det;
    load_rows<V, 2>(a.means2d, i, end, mean);
    load_rows<V, 3>(a.conics, i, end, conic);
    load_rows<V, 1>(a.opacities, i, end, &opacity);
    for (int l = 0; l < L; ++l) det[l] = math::determinant(S(conic[0][l]), S(conic[1][l]), S(conic[2][l]));
    const auto e = math::make_ellipse(conic[0], conic[1], conic[2], math::ellipse_level(opacity), det);
    const auto p = math::make_pixel_splat<S>(mean[0], mean[1], conic, opacity);
    const V rows[12] = {p.x, p.y, p.a, p.b, p.c, p.opacity, e.inv_a, e.b, e.aq, e.det, e.widest, e.reach};
    static_assert(sizeof(Packed<S>) == 16 * sizeof(S));
    for (int l = 0; l < L && i + l < end; ++l)
      for (int r = 0; r < 12; ++r) reinterpret_cast<S*>(a.packed + i + l)[r] = rows[r][l];
  }
}

// The pixels of a tile in groups of as many as a vector has lanes: the tile's blocks, or pixels sampled anywhere in it,
// of which a round takes as many groups as there are blocks.
template <class S, int L>
class TilePixels {
 public:
  GSF_HD TilePixels(const BlendArgs<S>& a, int64_t tile, int round = 0) : a_(a) {
    x0 = int(tile % a.tiles_x) * kTile, y0 = int(tile / a.tiles_x) * kTile;
    pixels_x_ = math::min(kTile, a.width - x0), pixels_y_ = math::min(kTile, a.height - y0);
    if (!a.pixels) return;
    first_ = a.pixel_offsets[tile] + round * kRound;
    sampled_ = int(math::min(a.pixel_offsets[tile + 1] - first_, int64_t(kRound)));
  }
  static GSF_HD int rounds(const BlendArgs<S>& a, int64_t tile) {
    return a.pixels ? int((a.pixel_offsets[tile + 1] - a.pixel_offsets[tile] + kRound - 1) / kRound) : 1;
  }

  GSF_HD int groups() const { return a_.pixels ? (sampled_ + L - 1) / L : B::count; }
  // Lanes that have a pixel, maybe outside the image: the first of the group.
  GSF_HD int lanes(int group) const { return a_.pixels ? math::min(sampled_ - group * L, L) : L; }
  // Whether any of the group's pixels lies inside the image.
  GSF_HD bool inside(int group) const {
    return a_.pixels || (group % B::columns * B::width < pixels_x_ && group / B::columns * B::height < pixels_y_);
  }
  // The blocks that the group's pixels lie in, one bit each.
  GSF_HD uint64_t blocks(int group) const {
    if (!a_.pixels) return uint64_t(1) << group;
    uint64_t bits = 0;
    for (int l = 0; l < lanes(group); ++l) {
      const Place p = place(group, l);
      bits |= uint64_t(1) << ((p.y - y0) / B::height * B::columns + (p.x - x0) / B::width);
    }
    return bits;
  }
  // Where lane l of a group lies, and its row or -1.
  struct Place {
    int x, y;
    int64_t row;
  };
  GSF_HD Place place(int group, int l) const {
    if (a_.pixels) {
      const int k = math::min(group * L + l, sampled_ - 1);
      const int64_t pixel = a_.pixels[first_ + k] - a_.first_pixel;
      return {int(pixel % a_.width), int(pixel / a_.width), k == group * L + l ? first_ + k : -1};
    }
    const int x = group % B::columns * B::width + l % B::width, y = group / B::columns * B::height + l / B::width;
    const bool in_image = x < pixels_x_ && y < pixels_y_;
    return {x0 + x, y0 + y, in_image ? int64_t(y0 + y) * a_.width + x0 + x : -1};
  }

  int x0, y0;  // the tile's corner in the image

 private:
  using B = Block<L>;
  static constexpr int kRound = B::count * L;
  const BlendArgs<S>& a_;
  int pixels_x_, pixels_y_;  // how much of the tile lies inside the image
  int64_t first_ = 0;
  int sampled_ = 0;
};

// Loads Gaussians [first, first + count) of the tile's list, and tells for each which blocks it reaches.
template <class S, int L>
GSF_HD void load_and_cull(const BlendArgs<S>& a, const TilePixels<S, L>& tile, const int32_t* ids, int count,
                          CullBatch<S>& c, Entry<S>* entries, uint64_t* masks) {
  using B = Block<L>;
  using V = typename Lanes<S, L>::V;
  using M = typename Lanes<S, L>::M;
  for (int j = 0; j < count; ++j) {
    __builtin_prefetch(&a.packed[ids[math::min(j + kPrefetch, count - 1)]]);
    const Packed<S>& p = a.packed[ids[j]];
    entries[j] = {p.at_pixels, ids[j]};
    c.x[j] = p.at_pixels.x - tile.x0, c.y[j] = p.at_pixels.y - tile.y0;
    c.inv_a[j] = p.ellipse.inv_a, c.b[j] = p.ellipse.b, c.aq[j] = p.ellipse.aq, c.det[j] = p.ellipse.det;
    c.widest[j] = p.ellipse.widest, c.reach[j] = p.ellipse.reach;
  }
  for (int j = 0; j < count; j += L) {
    const math::Ellipse<V> e{load<V>(c.inv_a + j), load<V>(c.b + j),      load<V>(c.aq + j),
                             load<V>(c.det + j),   load<V>(c.widest + j), load<V>(c.reach + j)};
    const V x = load<V>(c.x + j), y = load<V>(c.y + j);
    const M open = e.det <= S(0);  // no closed ellipse: every pixel is tried
    M bits[2] = {};                // 32 blocks each
    for (int row = 0; row < B::rows; ++row) {
      V left, right;
      const V lo = S(row * B::height + 0.5) - y, hi = lo + S(B::height - 1);
      math::slab_interval(e, lo, hi, left, right);
      left += x, right += x;
      const M meets = (lo <= e.reach) & (hi >= -e.reach);
      for (int column = 0; column < B::columns; ++column) {
        const int block = row * B::columns + column;
        const M hit =
            open | (meets & (right >= S(column * B::width + 0.5)) & (left <= S(column * B::width + B::width - 0.5)));
        bits[block / 32] |= hit & typename Lanes<S, L>::I(int64_t(1) << (block % 32));
      }
    }
    for (int l = 0; l < L && j + l < count; ++l)
      masks[j + l] = uint32_t(bits[0][l]) | uint64_t(uint32_t(bits[1][l])) << 32;
  }
}

// The entries that reach one of these blocks.
GSF_HD int reaching(const uint64_t* masks, int count, uint64_t blocks, int32_t* list) {
  int n = 0;
  for (int j = 0; j < count; ++j) {
    list[n] = j;
    n += (masks[j] & blocks) != 0;
  }
  return n;
}

// One pixel per lane: position, transmittance so far, and the same again or 0 once the pixel accepts no more Gaussians
// (or lies outside the image); the end of what it blended in the tile's list.
template <class S, int L>
struct Pixels {
  typename Lanes<S, L>::V x, y, T, live;
  typename Lanes<S, L>::M last;
};

template <class S, int L>
GSF_HD Pixels<S, L> start_pixels(const TilePixels<S, L>& tile, int group) {
  Pixels<S, L> p;
  for (int l = 0; l < L; ++l) {
    const auto at = tile.place(group, l);
    p.x[l] = S(at.x) + S(0.5), p.y[l] = S(at.y) + S(0.5);
    p.live[l] = at.row >= 0 ? S(1) : S(0);
    p.T[l] = 1, p.last[l] = 0;
  }
  return p;
}

// All groups of a tile; returns those with a pixel inside the image, one bit each.
template <class S, int L>
GSF_HD uint64_t start_groups(const TilePixels<S, L>& tile, Pixels<S, L>* pixels) {
  uint64_t open = 0;
  for (int g = 0; g < tile.groups(); ++g) {
    pixels[g] = start_pixels<S, L>(tile, g);
    if (tile.inside(g)) open |= uint64_t(1) << g;
  }
  return open;
}

template <class S, int L>
GSF_HD void store_pixels(const BlendArgs<S>& a, const TilePixels<S, L>& tile, int group, const Pixels<S, L>& p) {
  for (int l = 0; l < L; ++l)
    if (const int64_t row = tile.place(group, l).row; row >= 0)
      a.transmittance[row] = p.T[l], a.last[row] = int32_t(p.last[l]);
}

// Walks a group's list front to back, writing per survivor (an entry that some pixel blends) its index, its
// weight alpha T, and for the backward pass alpha and T. Returns the number of survivors. first: the list's place in
// that of the tile.
template <bool kKeep, class S, int L, class V = typename Lanes<S, L>::V>
GSF_HD int march(const Entry<S>* entries, const int32_t* list, int count, int first, Pixels<S, L>& p,
                 int32_t* survivors, V* weights, V* alphas, V* Ts) {
  using M = typename Lanes<S, L>::M;
  int n = 0;
  const V zero = {};
  for (int k = 0; k < count; ++k) {
    const Entry<S>& e = entries[list[k]];
    const V dx = p.x - e.x, dy = p.y - e.y;
    const V scaled = math::scaled_exponent(e, dx, dy), kept = math::pair_alpha(e, scaled, exp_negative(scaled));
    const V next = p.live * (1 - kept);
    const auto stop = next <= S(math::kTransmittanceMin);  // now, or earlier: then live and next are 0
    const V weight = stop ? zero : kept * p.live;
    weights[n] = weight;
    if constexpr (kKeep)
      alphas[n] = stop ? zero : kept, Ts[n] = p.live;
    else
      p.last = weight > zero ? M{} + (first + list[k] + 1) : p.last;
    survivors[n] = list[k];
    p.T = stop ? p.T : next;
    p.live = stop ? zero : next;
    n += any(weight > zero);
    if (k % 4 == 3 && !any(p.live > zero)) break;  // testing each time costs more than it saves
  }
  return n;
}

}  // namespace
