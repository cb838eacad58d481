// Blending of one 16x16 tile, forward and backward. Included by isa.cpp.
//
// A tile is cut into blocks of as many pixels as a vector has lanes (4x4, 4x2 or 2x2). For each block:
//   cull   which of the tile's Gaussians reach it (vectorised over Gaussians),
//   march  front to back: alpha, transmittance and weight of each survivor, for all pixels at once,
//   mix    image += weights x values, a matrix product over any number of channels.
// Backward marches again, then carries one scalar per pixel from back to front: math::pair_gradient().
#pragma once

#include "../math/bounds.h"
#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;
using math::kTile;

constexpr int kBatch = 512;       // Gaussians of a tile culled and marched at a time
constexpr int kPrefetch = 16;     // how many Gaussians ahead to fetch when loading a batch
constexpr int kChannelBlock = 4;  // channels per pass of the backward product

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

template <class S, int L>
struct TileGeometry {
  int x0, y0, pixels_x, pixels_y;  // corner in the image, and how much of the tile lies inside it
  GSF_HD TileGeometry(const BlendArgs<S>& a, int64_t tile) {
    x0 = int(tile % a.tiles_x) * kTile, y0 = int(tile / a.tiles_x) * kTile;
    pixels_x = math::min(kTile, a.width - x0), pixels_y = math::min(kTile, a.height - y0);
  }
  GSF_HD bool inside(int block) const {
    using B = Block<L>;
    return block % B::columns * B::width < pixels_x && block / B::columns * B::height < pixels_y;
  }
  // Image row-major index of lane l of a block, or -1 outside the image.
  GSF_HD int64_t pixel(const BlendArgs<S>& a, int block, int l) const {
    using B = Block<L>;
    const int x = block % B::columns * B::width + l % B::width, y = block / B::columns * B::height + l / B::width;
    return x < pixels_x && y < pixels_y ? int64_t(y0 + y) * a.width + x0 + x : -1;
  }
};

// Loads Gaussians [first, first + count) of the tile's list, and tells for each which blocks it reaches.
template <class S, int L>
GSF_HD void load_and_cull(const BlendArgs<S>& a, const TileGeometry<S, L>& tile, const int32_t* ids, int count,
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

// The entries whose mask has this block's bit.
GSF_HD int block_list(const uint64_t* masks, int count, int block, int32_t* list) {
  int n = 0;
  for (int j = 0; j < count; ++j) {
    list[n] = j;
    n += int(masks[j] >> block & 1);
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
GSF_HD Pixels<S, L> start_pixels(const TileGeometry<S, L>& tile, int block) {
  using B = Block<L>;
  Pixels<S, L> p;
  for (int l = 0; l < L; ++l) {
    const int x = block % B::columns * B::width + l % B::width, y = block / B::columns * B::height + l / B::width;
    p.x[l] = S(tile.x0 + x) + S(0.5), p.y[l] = S(tile.y0 + y) + S(0.5);
    p.live[l] = x < tile.pixels_x && y < tile.pixels_y ? S(1) : S(0);
    p.T[l] = 1, p.last[l] = 0;
  }
  return p;
}

// Walks a block's list front to back, writing per survivor (an entry that some pixel blends) its index, its
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

// sums[c] += sum_k weights[k] values[survivor k][channel c], for CB channels.
template <int CB, class S, class V>
GSF_HD void mix(const Entry<S>* entries, const int32_t* survivors, const V* weights, int n, const S* values,
                int64_t channels, V* sums) {
  V acc[CB];
  for (int c = 0; c < CB; ++c) acc[c] = sums[c];
  for (int k = 0; k < n; ++k) {
    const S* v = values + entries[survivors[k]].id * channels;
    for (int c = 0; c < CB; ++c) acc[c] += weights[k] * v[c];
  }
  for (int c = 0; c < CB; ++c) sums[c] = acc[c];
}

template <class S, int L>
struct ForwardScratch {
  using V = typename Lanes<S, L>::V;
  CullBatch<S> cull;
  Entry<S> entries[kBatch];
  uint64_t masks[kBatch];
  int32_t list[kBatch], survivors[kBatch];
  alignas(64) V weights[kBatch];
  Pixels<S, L> pixels[Block<L>::count];
  alignas(64) V sums[];  // [blocks, channels]
};

template <class S, int L>
int64_t blend_scratch(int64_t channels) {
  return int64_t(sizeof(ForwardScratch<S, L>)) + Block<L>::count * channels * int64_t(sizeof(S)) * L;
}

template <class S, int L>
void blend_tile(const BlendArgs<S>& a, int64_t tile_index, void* scratch) {
  using B = Block<L>;
  using V = typename Lanes<S, L>::V;
  auto& s = *static_cast<ForwardScratch<S, L>*>(scratch);
  const TileGeometry<S, L> tile(a, tile_index);
  const int64_t begin = a.tile_offsets[tile_index], end = a.tile_offsets[tile_index + 1], C = a.channels;
  uint64_t open = 0;  // blocks with a live pixel
  for (int block = 0; block < B::count; ++block) {
    s.pixels[block] = start_pixels<S, L>(tile, block);
    if (tile.inside(block)) open |= uint64_t(1) << block;
    for (int64_t c = 0; c < C; ++c) s.sums[block * C + c] = V{};
  }

  for (int64_t first = begin; first < end && open; first += kBatch) {
    const int count = int(math::min(int64_t(kBatch), end - first));
    load_and_cull<S, L>(a, tile, a.ids + first, count, s.cull, s.entries, s.masks);
    for (int block = 0; block < B::count; ++block) {
      if (!(open >> block & 1)) continue;
      const int listed = block_list(s.masks, count, block, s.list);
      Pixels<S, L> p = s.pixels[block];
      const int n =
          march<false>(s.entries, s.list, listed, int(first - begin), p, s.survivors, s.weights, s.weights, s.weights);
      s.pixels[block] = p;
      if (!any(p.live > V{})) open &= ~(uint64_t(1) << block);
      if (n == 0) continue;
      V* sums = s.sums + block * C;
      int64_t c = 0;
      for (; c + 8 <= C; c += 8) mix<8>(s.entries, s.survivors, s.weights, n, a.values + c, C, sums + c);
      if (C - c >= 4) mix<4>(s.entries, s.survivors, s.weights, n, a.values + c, C, sums + c), c += 4;
      if (C - c == 3) mix<3>(s.entries, s.survivors, s.weights, n, a.values + c, C, sums + c);
      if (C - c == 2) mix<2>(s.entries, s.survivors, s.weights, n, a.values + c, C, sums + c);
      if (C - c == 1) mix<1>(s.entries, s.survivors, s.weights, n, a.values + c, C, sums + c);
    }
  }

  for (int block = 0; block < B::count; ++block)
    for (int l = 0; l < L; ++l) {
      const int64_t pixel = tile.pixel(a, block, l);
      if (pixel < 0) continue;
      const S T = s.pixels[block].T[l];
      a.transmittance[pixel] = T, a.last[pixel] = int32_t(s.pixels[block].last[l]);
      S* out = a.image + pixel * C;
      for (int64_t c = 0; c < C; ++c) out[c] = s.sums[block * C + c][l] + (a.background ? T * a.background[c] : S(0));
    }
}

// Scratch of the backward pass, laid out for tiles whose lists are used up to `longest` and for C channels.
template <class S, int L>
struct BackwardScratch {
  using V = typename Lanes<S, L>::V;
  CullBatch<S>* cull;
  Entry<S>* entries;
  V *weights, *alphas, *Ts, *s, *v_image;
  uint64_t* masks;
  int32_t *list, *survivors;
  int64_t bytes;

  BackwardScratch(void* memory, int64_t longest, int64_t channels) {
    bytes = 0;
    const auto take = [&](auto*& out, int64_t n) __attribute__((always_inline)) {
      out = reinterpret_cast<__typeof__(out + 0)>(static_cast<char*>(memory) + bytes);
      bytes += (n * int64_t(sizeof(*out)) + 63) / 64 * 64;
    };
    take(cull, 1), take(entries, longest);
    take(weights, longest), take(alphas, longest), take(Ts, longest), take(s, longest);
    take(v_image, (channels + kChannelBlock - 1) / kChannelBlock * kChannelBlock);
    take(masks, longest), take(list, longest), take(survivors, longest);
  }
};

template <class S, int L>
int64_t blend_backward_scratch(int64_t channels, int64_t longest) {
  return BackwardScratch<S, L>(nullptr, longest, channels).bytes;
}

// s_k += <values_k, v_image> over CB channels, and dL/dvalues of the same channels into the records.
template <int CB, class S, class V>
GSF_HD void products(const BlendBackwardArgs<S>& a, const Entry<S>* entries, const int32_t* survivors, const V* weights,
                     int n, int64_t channel, const V* v_image, V* s) {
  const V zero = {};
  for (int k = 0; k < n; ++k) {
    if (a.geometry) {
      const S* v = a.forward.values + entries[survivors[k]].id * a.forward.channels + channel;
      V sum = s[k];
      for (int c = 0; c < CB; ++c) sum += v_image[c] * v[c];
      s[k] = sum;
    }
    if (a.to_values) {
      S* out = a.records + survivors[k] * a.record_size + (a.geometry ? kMoments : 0) + channel;
      const V w = weights[k];
      add_sums(V(w * v_image[0]), CB > 1 ? V(w * v_image[1]) : zero, CB > 2 ? V(w * v_image[2]) : zero,
               CB > 3 ? V(w * v_image[3]) : zero, out);
    }
  }
}

// From back to front: dL/dalpha, dL/dσ and its moments about each Gaussian's centre. `behind` enters as the
// background's share, and carries the sum over the Gaussians already passed.
template <class S, int L, class V = typename Lanes<S, L>::V>
GSF_HD void moments(const BlendBackwardArgs<S>& a, const BackwardScratch<S, L>& m, int n, const Pixels<S, L>& p,
                    V behind) {
  for (int k = n - 1; k >= 0; --k) {
    const Entry<S>& e = m.entries[m.survivors[k]];
    const V q = math::pair_gradient<S>(m.alphas[k], V(1 / (1 - m.alphas[k])), m.Ts[k], m.s[k], behind);
    behind += m.weights[k] * m.s[k];
    V sums[kMoments];
    math::pair_moments(e, V(p.x - e.x), V(p.y - e.y), q, sums);
    S* out = a.records + m.survivors[k] * a.record_size;
    add_sums(sums[0], sums[1], sums[2], sums[3], out);
    add_sums(sums[4], sums[5], sums[6], sums[7], out + 4);
    static_assert(kMoments == 8);
  }
}

template <class S, int L>
void blend_backward_tile(const BlendBackwardArgs<S>& a, int64_t tile_index, void* scratch) {
  using B = Block<L>;
  using V = typename Lanes<S, L>::V;
  const auto& f = a.forward;
  const TileGeometry<S, L> tile(f, tile_index);
  const int used = a.used[tile_index];
  const int64_t C = f.channels;
  BackwardScratch<S, L> m(scratch, used, C);
  __builtin_memset(a.records, 0, sizeof(S) * size_t(used) * size_t(a.record_size));
  for (int first = 0; first < used; first += kBatch)
    load_and_cull<S, L>(f, tile, f.ids + f.tile_offsets[tile_index] + first, math::min(kBatch, used - first), *m.cull,
                        m.entries + first, m.masks + first);

  for (int block = 0; block < B::count; ++block) {
    if (!tile.inside(block)) continue;
    const int listed = block_list(m.masks, used, block, m.list);
    Pixels<S, L> p = start_pixels<S, L>(tile, block);
    const int n = march<true>(m.entries, m.list, listed, 0, p, m.survivors, m.weights, m.alphas, m.Ts);
    if (n == 0) continue;

    V v_T = {};
    for (int64_t c = 0; c < C; ++c) m.v_image[c] = V{};
    for (int l = 0; l < L; ++l) {
      const int64_t pixel = tile.pixel(f, block, l);
      if (pixel < 0) continue;
      v_T[l] = a.v_transmittance[pixel];
      for (int64_t c = 0; c < C; ++c) m.v_image[c][l] = a.v_image[pixel * C + c];
    }
    for (int k = 0; k < n; ++k) m.s[k] = V{};
    int64_t c = 0;
    for (; c + 4 <= C; c += 4) products<4>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
    if (C - c == 3) products<3>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
    if (C - c == 2) products<2>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
    if (C - c == 1) products<1>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
    if (!a.geometry) continue;
    if (f.background)
      for (int64_t k = 0; k < C; ++k) v_T += m.v_image[k] * f.background[k];
    moments<S, L>(a, m, n, p, V(p.T * v_T));
  }
}

}  // namespace
