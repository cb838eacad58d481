// Blending of many channels in one 16x16 tile as products of matrices, a channel in each lane. Included by isa.cpp.
//
// With the weights W [pixels, Gaussians] of a tile, which depend on geometry alone, the image is W V and dL/dV is
// Wᵀ dL/dimage, for any number of channels. Channels are taken kPanel at a time: the rows that a batch needs of V (or
// of the image) are gathered into a panel in float, padded with zeros, so that neither the storage nor a ragged number
// of channels reaches the inner loops. Those hold a few rows by a few vectors of the result in registers.
#pragma once

#include "tile.h"

namespace {

using math::Storage;

constexpr int kPanel = 64;  // channels at a time
static_assert(kBatch * kPanel * sizeof(float) <= 128 << 10, "a panel stays in the second cache");

// Rows and vectors of a result that registers hold, with room for the factors.
#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif

// Pixels sampled from a large image are often alone in their tile.
constexpr int kFewRows = 2;

// ---- storage -------------------------------------------------------------------------------------------------------

template <class U, int L>
struct Unsigned {
  typedef U V __attribute__((vector_size(sizeof(U) * L)));
};

// L elements from i on.
template <class V, class S>
GSF_HD V load_vector(const void* array, int64_t i, Storage storage) {
  if constexpr (sizeof(S) == 4) {
    constexpr int L = sizeof(V) / sizeof(S);
    using Half = typename Unsigned<uint16_t, L>::V;
    using Bits = typename Unsigned<uint32_t, L>::V;
    const char* at = static_cast<const char*>(array) + i * math::bytes_of(storage, sizeof(S));
    if (storage == Storage::kBfloat16) {
      Half half;
      __builtin_memcpy(&half, at, sizeof(half));
      return (V)(__builtin_convertvector(half, Bits) << 16);
    }
    if (storage == Storage::kFloat16) return from_float16<V>(at);
  }
  return load<V>(static_cast<const S*>(array) + i);
}

template <class S, class V>
GSF_HD void store_vector(void* array, int64_t i, Storage storage, V x) {
  if constexpr (sizeof(S) == 4) {
    constexpr int L = sizeof(V) / sizeof(S);
    using Half = typename Unsigned<uint16_t, L>::V;
    using Bits = typename Unsigned<uint32_t, L>::V;
    char* at = static_cast<char*>(array) + i * math::bytes_of(storage, sizeof(S));
    if (storage == Storage::kBfloat16) {
      const Bits bits = (Bits)x, rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
      const Half half = __builtin_convertvector(x == x ? rounded : Bits{} + 0x7fc0u, Half);
      __builtin_memcpy(at, &half, sizeof(half));
      return;
    }
    if (storage == Storage::kFloat16) return to_float16(x, at);
  }
  __builtin_memcpy(static_cast<S*>(array) + i, &x, sizeof(V));
}

// `count` elements from i on, in float, and zeros to the end of the vector.
template <class V, class S>
GSF_HD void load_padded(const void* array, int64_t i, int count, Storage storage, S* out) {
  constexpr int L = sizeof(V) / sizeof(S);
  int c = 0;
  for (; c + L <= count; c += L) {
    const V v = load_vector<V, S>(array, i + c, storage);
    __builtin_memcpy(out + c, &v, sizeof(V));
  }
  if (c == count) return;
  V rest = {};
  for (int l = 0; c + l < count; ++l) rest[l] = math::load_as<S>(array, i + c + l, storage);
  __builtin_memcpy(out + c, &rest, sizeof(V));
}

template <int L>
GSF_HD int64_t padded(int64_t channels) {
  return (channels + L - 1) / L * L;
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <class S, int L>
struct WideScratch {
  using V = typename Lanes<S, L>::V;
  static constexpr int kGroups = Block<L>::count;
  CullBatch<S> cull;
  Entry<S> entries[kBatch];
  uint64_t masks[kBatch];
  int32_t list[kBatch], survivors[kGroups][kBatch], n[kGroups];
  alignas(64) V weights[kGroups][kBatch];
  Pixels<S, L> pixels[kGroups];
  alignas(64) S panel[kBatch * kPanel];
  alignas(64) S background[kPanel];
  alignas(64) S sums[];  // [groups, L, padded channels], of lists longer than a batch
};

template <class S, int L>
int64_t wide_scratch(int64_t channels) {
  return int64_t(sizeof(WideScratch<S, L>)) + Block<L>::count * L * padded<L>(channels) * int64_t(sizeof(S));
}

// Marches the open groups through a batch; returns those with a pixel that accepts more.
template <class S, int L>
GSF_HD uint64_t march_batch(const TilePixels<S, L>& tile, int count, int first, uint64_t open, WideScratch<S, L>& s) {
  for (int g = 0; g < tile.groups(); ++g) {
    s.n[g] = 0;
    if (!(open >> g & 1)) continue;
    const int listed = reaching(s.masks, count, tile.blocks(g), s.list);
    Pixels<S, L> p = s.pixels[g];
    s.n[g] =
        march<false>(s.entries, s.list, listed, first, p, s.survivors[g], s.weights[g], s.weights[g], s.weights[g]);
    s.pixels[g] = p;
    if (!any(p.live > typename Lanes<S, L>::V{})) open &= ~(uint64_t(1) << g);
  }
  return open;
}

// The entries of the batch that any group blends.
template <class S, int L>
GSF_HD int blended_entries(const TilePixels<S, L>& tile, int count, WideScratch<S, L>& s) {
  for (int j = 0; j < count; ++j) s.masks[j] = 0;
  for (int g = 0; g < tile.groups(); ++g)
    for (int k = 0; k < s.n[g]; ++k) s.masks[s.survivors[g][k]] = 1;
  return reaching(s.masks, count, 1, s.list);
}

// The values of the n entries in s.list, `count` channels from c0 on.
template <class S, int L>
GSF_HD void load_values(const BlendArgs<S>& a, int n, int64_t c0, int count, WideScratch<S, L>& s) {
  const int64_t bytes = math::bytes_of(a.storage, sizeof(S));
  for (int i = 0; i < n; ++i) {
    const int64_t ahead = s.entries[s.list[math::min(i + kPrefetch / 4, n - 1)]].id * a.channels + c0;
    for (int64_t b = 0; b < count * bytes; b += 64) __builtin_prefetch((const char*)a.values + ahead * bytes + b);
    load_padded<typename Lanes<S, L>::V>(a.values, s.entries[s.list[i]].id * a.channels + c0, count, a.storage,
                                         s.panel + s.list[i] * kPanel);
  }
}

// Where the results of a product over one panel go: to the image, or to sums that the next batch goes on from.
template <class S>
struct Target {
  int64_t c0;
  int channels;  // of the panel
  bool from_sums, to_sums;
  int64_t sums_stride;
};

// R pixels by VC vectors of channels: acc += weights x panel.
template <int R, int VC, class S, class V>
GSF_HD void multiply(const V* weights, int first_pixel, const int32_t* survivors, int n, const S* panel,
                     V (&acc)[R][VC]) {
  constexpr int L = sizeof(V) / sizeof(S);
  for (int k = 0; k < n; ++k) {
    const S* w = reinterpret_cast<const S*>(weights + k) + first_pixel;
    const S* row = panel + survivors[k] * kPanel;
    V v[VC];
    for (int c = 0; c < VC; ++c) v[c] = load<V>(row + c * L);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < VC; ++c) acc[r][c] += w[r] * v[c];
  }
}

template <int R, int VC, class S, int L>
GSF_HD void blend_rows(const BlendArgs<S>& a, WideScratch<S, L>& s, int group, const int64_t* rows, int first_pixel,
                       int column, const Target<S>& t) {
  using V = typename Lanes<S, L>::V;
  V acc[R][VC] = {};
  S* sums = s.sums + (group * L + first_pixel) * t.sums_stride + t.c0 + column;
  if (t.from_sums)
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < VC; ++c) acc[r][c] = load<V>(sums + r * t.sums_stride + c * L);
  multiply<R, VC>(s.weights[group], first_pixel, s.survivors[group], s.n[group], s.panel + column, acc);
  for (int r = 0; r < R; ++r) {
    const int64_t row = rows[first_pixel + r];
    for (int c = 0; c < VC; ++c) {
      if (t.to_sums) {
        __builtin_memcpy(sums + r * t.sums_stride + c * L, &acc[r][c], sizeof(V));
        continue;
      }
      if (row < 0) continue;
      const V sum = acc[r][c] + s.pixels[group].T[first_pixel + r] * load<V>(s.background + column + c * L);
      const int at = column + c * L;
      if (at + L <= t.channels)
        store_vector<S>(a.image, row * a.channels + t.c0 + at, a.storage, sum);
      else
        for (int l = 0; at + l < t.channels; ++l)
          math::store_as<S>(a.image, row * a.channels + t.c0 + at + l, a.storage, sum[l]);
    }
  }
}

// All of a panel's columns, for R pixels.
template <int R, class S, int L>
GSF_HD void blend_columns(const BlendArgs<S>& a, WideScratch<S, L>& s, int group, const int64_t* rows, int first_pixel,
                          int width, const Target<S>& t) {
  int column = 0;
  for (; column + kVectors * L <= width; column += kVectors * L)
    blend_rows<R, kVectors>(a, s, group, rows, first_pixel, column, t);
  for (; column < width; column += L) blend_rows<R, 1>(a, s, group, rows, first_pixel, column, t);
}

// The products of one batch over all channels.
template <class S, int L>
GSF_HD void blend_batch(const BlendArgs<S>& a, const TilePixels<S, L>& tile, int count, bool from_sums, bool to_sums,
                        WideScratch<S, L>& s) {
  const int blended = blended_entries(tile, count, s);
  for (int64_t c0 = 0; c0 < a.channels; c0 += kPanel) {
    const Target<S> t = {c0, int(math::min(int64_t(kPanel), a.channels - c0)), from_sums, to_sums,
                         padded<L>(a.channels)};
    const int width = int(padded<L>(t.channels));
    load_values(a, blended, c0, t.channels, s);
    for (int c = 0; c < width; ++c) s.background[c] = a.background && c < t.channels ? a.background[c0 + c] : S(0);
    for (int g = 0; g < tile.groups(); ++g) {
      if (!tile.inside(g)) continue;
      int64_t rows[L];
      for (int l = 0; l < L; ++l) rows[l] = tile.place(g, l).row;
      constexpr int R = kRows < L ? kRows : L;
      const int lanes = tile.lanes(g);
      for (int pixel = 0; pixel < lanes; pixel += R)
        if (lanes - pixel > kFewRows)
          blend_columns<R>(a, s, g, rows, pixel, width, t);
        else
          blend_columns<kFewRows>(a, s, g, rows, pixel, width, t);
    }
  }
}

template <class S, int L>
GSF_HD void blend_wide_tile(const BlendArgs<S>& a, int64_t tile_index, void* scratch) {
  auto& s = *static_cast<WideScratch<S, L>*>(scratch);
  const int64_t begin = a.tile_offsets[tile_index], end = a.tile_offsets[tile_index + 1];
  for (int round = 0; round < TilePixels<S, L>::rounds(a, tile_index); ++round) {
    const TilePixels<S, L> tile(a, tile_index, round);
    uint64_t open = start_groups(tile, s.pixels);  // groups with a live pixel
    bool more = true;
    for (int64_t first = begin; more; first += kBatch) {
      const int count = int(math::min(int64_t(kBatch), end - first));
      load_and_cull<S, L>(a, tile, a.ids + first, count, s.cull, s.entries, s.masks);
      open = march_batch(tile, count, int(first - begin), open, s);
      more = first + kBatch < end && open;
      blend_batch(a, tile, count, first > begin, more, s);
    }
    for (int g = 0; g < tile.groups(); ++g) store_pixels(a, tile, g, s.pixels[g]);
  }
}

// ---- lift, and the gradient of the values --------------------------------------------------------------------------

// Where the forward pass has its sums, the lift has a panel of the image, [groups, L, kPanel].
template <class S, int L>
int64_t lift_scratch() {
  return wide_scratch<S, L>(kPanel);
}

// The image's rows of the tile, `count` channels from c0 on; zeros outside the image.
template <class S, int L>
GSF_HD void load_image(const LiftTileArgs<S>& a, const TilePixels<S, L>& tile, int64_t c0, int count,
                       WideScratch<S, L>& s) {
  using V = typename Lanes<S, L>::V;
  const int64_t C = a.forward.channels;
  const int stored = int(math::max(math::min(int64_t(count), C - c0), int64_t(0)));
  for (int g = 0; g < tile.groups(); ++g)
    for (int l = 0; l < tile.lanes(g); ++l) {
      S* out = s.sums + (g * L + l) * kPanel;
      const int64_t row = tile.place(g, l).row;
      for (int c = row < 0 ? 0 : stored / L * L; c < padded<L>(count); ++c) out[c] = 0;
      if (row < 0) continue;
      load_padded<V>(a.image, row * C + c0, stored, a.forward.storage, out);
      if (stored < count) out[stored] = 1;
    }
}

// Adds to the records of R survivors, VC vectors of channels of each, from the first `lanes` pixels of a group.
template <int R, int VC, class S, int L>
GSF_HD void lift_rows(const WideScratch<S, L>& s, int group, int lanes, int k, int column, S* records,
                      int64_t record_size) {
  using V = typename Lanes<S, L>::V;
  V acc[R][VC];
  S* to[R];
  for (int r = 0; r < R; ++r) {
    to[r] = records + s.survivors[group][k + r] * record_size + column;
    for (int c = 0; c < VC; ++c) acc[r][c] = load<V>(to[r] + c * L);
  }
  const S* weights = reinterpret_cast<const S*>(s.weights[group] + k);
  const S* image = s.sums + group * L * kPanel + column;
  const auto add = [&](int l) __attribute__((always_inline)) {
    V v[VC];
    for (int c = 0; c < VC; ++c) v[c] = load<V>(image + l * kPanel + c * L);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < VC; ++c) acc[r][c] += weights[r * L + l] * v[c];
  };
  if (lanes == L)  // a known number, so that it is unrolled
    for (int l = 0; l < L; ++l) add(l);
  else
    for (int l = 0; l < lanes; ++l) add(l);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < VC; ++c) __builtin_memcpy(to[r] + c * L, &acc[r][c], sizeof(V));
}

template <int VC, class S, int L>
GSF_HD void lift_columns(const WideScratch<S, L>& s, int group, int lanes, int column, S* records,
                         int64_t record_size) {
  const int n = s.n[group];
  int k = 0;
  for (; k + kRows <= n; k += kRows) lift_rows<kRows, VC>(s, group, lanes, k, column, records, record_size);
  for (; k < n; ++k) lift_rows<1, VC>(s, group, lanes, k, column, records, record_size);
}

// The products of one batch; records: of its first Gaussian.
template <class S, int L>
GSF_HD void lift_batch(const LiftTileArgs<S>& a, const TilePixels<S, L>& tile, S* records, WideScratch<S, L>& s) {
  for (int64_t c0 = 0; c0 < a.channels; c0 += kPanel) {
    const int count = int(math::min(int64_t(kPanel), a.channels - c0)), width = int(padded<L>(count));
    load_image(a, tile, a.first_channel + c0, count, s);
    for (int g = 0; g < tile.groups(); ++g) {
      int column = 0;
      for (; column + kVectors * L <= width; column += kVectors * L)
        lift_columns<kVectors>(s, g, tile.lanes(g), column, records + c0, a.record_size);
      for (; column < width; column += L) lift_columns<1>(s, g, tile.lanes(g), column, records + c0, a.record_size);
    }
  }
}

template <class S, int L>
int lift_tile(const LiftTileArgs<S>& a, int64_t tile_index, void* scratch) {
  auto& s = *static_cast<WideScratch<S, L>*>(scratch);
  const auto& f = a.forward;
  const int64_t begin = f.tile_offsets[tile_index], end = begin + a.used[tile_index];
  int64_t written = 0;
  for (int round = 0; round < TilePixels<S, L>::rounds(f, tile_index); ++round) {
    const TilePixels<S, L> tile(f, tile_index, round);
    uint64_t open = start_groups(tile, s.pixels);
    for (int64_t first = begin; first < end && open; first += kBatch) {
      const int count = int(math::min(int64_t(kBatch), end - first));
      S* records = a.records + (first - begin) * a.record_size;
      if (first - begin + count > written) {
        __builtin_memset(records, 0, sizeof(S) * size_t(count * a.record_size));
        written = first - begin + count;
      }
      load_and_cull<S, L>(f, tile, f.ids + first, count, s.cull, s.entries, s.masks);
      open = march_batch(tile, count, int(first - begin), open, s);
      if (a.factors)
        for (int g = 0; g < tile.groups(); ++g) {
          typename Lanes<S, L>::V factor = {};
          for (int l = 0; l < L; ++l)
            if (const int64_t row = tile.place(g, l).row; row >= 0) factor[l] = a.factors[row];
          for (int k = 0; k < s.n[g]; ++k) s.weights[g][k] *= factor;
        }
      lift_batch(a, tile, records, s);
    }
  }
  return int(written);
}

// ---- <values, dL/dimage> of every pair ------------------------------------------------------------------------------

// Rows become columns.
template <class S, int L>
GSF_HD void transpose(typename Lanes<S, L>::V (&rows)[L]) {
  using V = typename Lanes<S, L>::V;
  using M = typename Lanes<S, L>::M;
  for (int step = 1; step < L; step *= 2) {
    M low = {}, high = {};
    for (int l = 0; l < L; ++l) {
      low[l] = l & step ? L + (l ^ step) : l;
      high[l] = l & step ? L + l : l ^ step;
    }
    for (int i = 0; i < L; ++i)
      if (!(i & step)) {
        const V a = rows[i], b = rows[i + step];
        rows[i] = __builtin_shuffle(a, b, low), rows[i + step] = __builtin_shuffle(a, b, high);
      }
  }
}

// dL/dimage of a group's pixels as [channels, L], `count` channels from c0 on.
template <class S, int L>
GSF_HD void load_transposed(const BlendBackwardArgs<S>& a, const int64_t* rows, int64_t c0, int count, S* out) {
  using V = typename Lanes<S, L>::V;
  for (int c = 0; c < count; c += L) {
    V block[L];
    for (int l = 0; l < L; ++l) {
      S row[L] = {};
      if (rows[l] >= 0)
        load_padded<V>(a.v_image, rows[l] * a.forward.channels + c0 + c, math::min(L, count - c), a.forward.storage,
                       row);
      block[l] = load<V>(row);
    }
    transpose<S, L>(block);
    for (int l = 0; l < L; ++l) __builtin_memcpy(out + (c + l) * L, &block[l], sizeof(V));
  }
}

// s of R survivors += <their values, dL/dimage>, over `count` channels.
template <int R, class S, class V>
GSF_HD void dot_rows(const S* const* rows, const S* v_image, int count, V* s) {
  V acc[R];
  for (int r = 0; r < R; ++r) acc[r] = s[r];
  for (int c = 0; c < count; ++c) {
    const V v = load<V>(v_image + c * int(sizeof(V) / sizeof(S)));
    for (int r = 0; r < R; ++r) acc[r] += rows[r][c] * v;
  }
  for (int r = 0; r < R; ++r) s[r] = acc[r];
}

constexpr int kDotRows = 8;

template <class S, int L>
struct DotScratch {
  alignas(64) S v_image[kPanel * L];  // [channels, L]
  alignas(64) S values[kDotRows * kPanel];
};

// s[k] = <values of survivor k, dL/dimage> for the pixels of a group, one in each lane. Returns <background,
// dL/dimage>.
template <class S, int L, class V = typename Lanes<S, L>::V>
GSF_HD V dot_values(const BlendBackwardArgs<S>& a, const int64_t* pixel_rows, const Entry<S>* entries,
                    const int32_t* survivors, int n, V* s, DotScratch<S, L>& scratch) {
  const auto& f = a.forward;
  V onto_background = {};
  for (int k = 0; k < n; ++k) s[k] = V{};
  for (int64_t c0 = 0; c0 < f.channels; c0 += kPanel) {
    const int count = int(math::min(int64_t(kPanel), f.channels - c0));
    load_transposed<S, L>(a, pixel_rows, c0, count, scratch.v_image);
    for (int c = 0; c < count && f.background; ++c)
      onto_background += f.background[c0 + c] * load<V>(scratch.v_image + c * L);
    for (int k = 0; k < n; k += kDotRows) {
      const S* rows[kDotRows];
      for (int r = 0; r < kDotRows; ++r) {
        const int64_t at = entries[survivors[math::min(k + r, n - 1)]].id * f.channels + c0;
        rows[r] = static_cast<const S*>(f.values) + at;
        if (f.storage == Storage::kFull) continue;
        load_padded<V>(f.values, at, count, f.storage, scratch.values + r * kPanel);
        rows[r] = scratch.values + r * kPanel;
      }
      if (k + kDotRows <= n)
        dot_rows<kDotRows>(rows, scratch.v_image, count, s + k);
      else
        for (int r = 0; k + r < n; ++r) dot_rows<1>(rows + r, scratch.v_image, count, s + k + r);
    }
  }
  return onto_background;
}

}  // namespace
