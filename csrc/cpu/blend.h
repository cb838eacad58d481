// Blending of few channels in one 16x16 tile, a pixel in each lane, forward and backward. Included by isa.cpp.
#pragma once

#include "tile.h"
#include "wide.h"

namespace {

constexpr int kChannelBlock = 4;  // channels per pass of the backward product

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
int64_t blend_scratch(int64_t channels, Storage storage) {
  if (is_wide(channels, storage, kWideForward)) return wide_scratch<S, L>(channels);
  return int64_t(sizeof(ForwardScratch<S, L>)) + Block<L>::count * channels * int64_t(sizeof(S)) * L;
}

// The image, transmittance and end of one group's pixels.
template <class S, int L, class V = typename Lanes<S, L>::V>
GSF_HD void store_group(const BlendArgs<S>& a, const TilePixels<S, L>& tile, int group, const Pixels<S, L>& p,
                        const V* sums) {
  store_pixels(a, tile, group, p);
  for (int l = 0; l < L; ++l) {
    const int64_t row = tile.place(group, l).row;
    if (row < 0) continue;
    S* out = static_cast<S*>(a.image) + row * a.channels;
    for (int64_t c = 0; c < a.channels; ++c) out[c] = sums[c][l] + (a.background ? p.T[l] * a.background[c] : S(0));
  }
}

template <class S, int L>
GSF_HD void blend_narrow_tile(const BlendArgs<S>& a, int64_t tile_index, int round, void* scratch) {
  using V = typename Lanes<S, L>::V;
  auto& s = *static_cast<ForwardScratch<S, L>*>(scratch);
  const TilePixels<S, L> tile(a, tile_index, round);
  const int64_t begin = a.tile_offsets[tile_index], end = a.tile_offsets[tile_index + 1], C = a.channels;
  const S* values = static_cast<const S*>(a.values);
  uint64_t open = start_groups(tile, s.pixels);  // groups with a live pixel
  for (int64_t i = 0; i < tile.groups() * C; ++i) s.sums[i] = V{};

  for (int64_t first = begin; first < end && open; first += kBatch) {
    const int count = int(math::min(int64_t(kBatch), end - first));
    load_and_cull<S, L>(a, tile, a.ids + first, count, s.cull, s.entries, s.masks);
    for (int g = 0; g < tile.groups(); ++g) {
      if (!(open >> g & 1)) continue;
      const int listed = reaching(s.masks, count, tile.blocks(g), s.list);
      Pixels<S, L> p = s.pixels[g];
      const int n =
          march<false>(s.entries, s.list, listed, int(first - begin), p, s.survivors, s.weights, s.weights, s.weights);
      s.pixels[g] = p;
      if (!any(p.live > V{})) open &= ~(uint64_t(1) << g);
      if (n == 0) continue;
      V* sums = s.sums + g * C;
      int64_t c = 0;
      for (; c + 4 <= C; c += 4) mix<4>(s.entries, s.survivors, s.weights, n, values + c, C, sums + c);
      if (C - c == 3) mix<3>(s.entries, s.survivors, s.weights, n, values + c, C, sums + c);
      if (C - c == 2) mix<2>(s.entries, s.survivors, s.weights, n, values + c, C, sums + c);
      if (C - c == 1) mix<1>(s.entries, s.survivors, s.weights, n, values + c, C, sums + c);
    }
  }
  for (int g = 0; g < tile.groups(); ++g) store_group(a, tile, g, s.pixels[g], s.sums + g * C);
}

template <class S, int L>
void blend_tile(const BlendArgs<S>& a, int64_t tile, void* scratch) {
  if (is_wide(a.channels, a.storage, kWideForward)) return blend_wide_tile<S, L>(a, tile, scratch);
  for (int round = 0; round < TilePixels<S, L>::rounds(a, tile); ++round)
    blend_narrow_tile<S, L>(a, tile, round, scratch);
}

// Scratch of the backward pass, laid out for tiles whose lists are used up to `longest` and for C channels.
template <class S, int L>
struct BackwardScratch {
  using V = typename Lanes<S, L>::V;
  CullBatch<S>* cull;
  Entry<S>* entries;
  V *weights, *alphas, *Ts, *s, *v_image;
  DotScratch<S, L>* dots;
  uint64_t* masks;
  int32_t *list, *survivors;
  int64_t bytes;

  BackwardScratch(void* memory, int64_t longest) {
    bytes = 0;
    const auto take = [&](auto*& out, int64_t n) __attribute__((always_inline)) {
      out = reinterpret_cast<__typeof__(out + 0)>(static_cast<char*>(memory) + bytes);
      bytes += (n * int64_t(sizeof(*out)) + 63) / 64 * 64;
    };
    take(cull, 1), take(entries, longest);
    take(weights, longest), take(alphas, longest), take(Ts, longest), take(s, longest);
    take(v_image, kWideBackward), take(dots, 1);
    take(masks, longest), take(list, longest), take(survivors, longest);
  }
};

template <class S, int L>
int64_t blend_backward_scratch(int64_t longest) {
  return BackwardScratch<S, L>(nullptr, longest).bytes;
}

// s_k += <values_k, v_image> over CB channels, and dL/dvalues of the same channels into the records.
template <int CB, class S, class V>
GSF_HD void products(const BlendBackwardArgs<S>& a, const Entry<S>* entries, const int32_t* survivors, const V* weights,
                     int n, int64_t channel, const V* v_image, V* s) {
  const V zero = {};
  const S* values = static_cast<const S*>(a.forward.values) + channel;
  for (int k = 0; k < n; ++k) {
    const S* v = values + entries[survivors[k]].id * a.forward.channels;
    V sum = s[k];
    for (int c = 0; c < CB; ++c) sum += v_image[c] * v[c];
    s[k] = sum;
    if (a.to_values) {
      S* out = a.records + survivors[k] * a.record_size + kMoments + channel;
      const V w = weights[k];
      add_sums(V(w * v_image[0]), CB > 1 ? V(w * v_image[1]) : zero, CB > 2 ? V(w * v_image[2]) : zero,
               CB > 3 ? V(w * v_image[3]) : zero, out);
    }
  }
}

// The same for all channels, which are few. Returns <background, v_image>.
template <class S, int L, class V = typename Lanes<S, L>::V>
GSF_HD V narrow_products(const BlendBackwardArgs<S>& a, const int64_t* rows, int n, const BackwardScratch<S, L>& m) {
  const int64_t C = a.forward.channels;
  for (int64_t c = 0; c < C; ++c) m.v_image[c] = V{};
  for (int l = 0; l < L; ++l)
    for (int64_t c = 0; c < C && rows[l] >= 0; ++c) m.v_image[c][l] = static_cast<const S*>(a.v_image)[rows[l] * C + c];
  for (int k = 0; k < n; ++k) m.s[k] = V{};
  int64_t c = 0;
  for (; c + 4 <= C; c += 4) products<4>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
  if (C - c == 3) products<3>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
  if (C - c == 2) products<2>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
  if (C - c == 1) products<1>(a, m.entries, m.survivors, m.weights, n, c, m.v_image + c, m.s);
  V onto_background = {};
  for (int64_t k = 0; k < C && a.forward.background; ++k) onto_background += m.v_image[k] * a.forward.background[k];
  return onto_background;
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
  using V = typename Lanes<S, L>::V;
  const auto& f = a.forward;
  const int used = a.used[tile_index];
  const bool wide = is_wide(f.channels, f.storage, kWideBackward);
  BackwardScratch<S, L> m(scratch, used);
  __builtin_memset(a.records, 0, sizeof(S) * size_t(used) * size_t(a.record_size));
  for (int first = 0; first < used; first += kBatch)
    load_and_cull<S, L>(f, TilePixels<S, L>(f, tile_index), f.ids + f.tile_offsets[tile_index] + first,
                        math::min(kBatch, used - first), *m.cull, m.entries + first, m.masks + first);

  for (int round = 0; round < TilePixels<S, L>::rounds(f, tile_index); ++round) {
    const TilePixels<S, L> tile(f, tile_index, round);
    for (int g = 0; g < tile.groups(); ++g) {
      if (!tile.inside(g)) continue;
      const int listed = reaching(m.masks, used, tile.blocks(g), m.list);
      Pixels<S, L> p = start_pixels<S, L>(tile, g);
      const int n = march<true>(m.entries, m.list, listed, 0, p, m.survivors, m.weights, m.alphas, m.Ts);
      if (n == 0) continue;
      int64_t rows[L];
      V v_T = {};
      for (int l = 0; l < L; ++l) {
        rows[l] = tile.place(g, l).row;
        if (rows[l] >= 0) v_T[l] = a.v_transmittance[rows[l]];
      }
      v_T += wide ? dot_values<S, L>(a, rows, m.entries, m.survivors, n, m.s, *m.dots)
                  : narrow_products<S, L>(a, rows, n, m);
      moments<S, L>(a, m, n, p, V(p.T * v_T));
    }
  }
}

}  // namespace
