// Blending, its backward pass, SSIM and contrasts of pixels over whole images: scheduling, scratch memory,
// deterministic reductions.
#include "stages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <type_traits>

namespace gsfields::cpu {

namespace {

// Uninitialised memory aligned for any vector.
struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  void* p = std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64 + 64);
  if (!p) throw std::bad_alloc();
  return Memory(p);
}

std::vector<Memory> scratch_per_worker(const Threads& threads, int64_t bytes) {
  std::vector<Memory> scratch;
  for (int i = 0; i < threads.count; ++i) scratch.push_back(allocate(bytes));
  return scratch;
}

// f(item, worker) for every item, handed out one by one: tiles differ widely in cost.
template <class F>
void for_each_item(const Threads& threads, int64_t begin, int64_t end, const F& f) {
  std::atomic<int64_t> next{begin};
  threads.run([&](int worker) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < end;) f(item, worker);
  });
}

// Sums over pixels are kept as one record per (Gaussian, tile) pair of a group of tiles. Groups are cut so that their
// records stay within kGroupBytes, which a processor's last cache holds, unless a single tile exceeds it; channels are
// cut so that no tile's records exceed kRecordBytes.
constexpr int64_t kGroupBytes = int64_t(8) << 20, kRecordBytes = int64_t(32) << 20;

template <class S>
BlendArgs<S> view_args(const BlendInput<S>& in, int64_t view) {
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height), at = view * in.n;
  BlendArgs<S> a{};
  a.storage = in.storage;
  if (in.values)
    a.values =
        static_cast<const char*>(in.values) + view * in.values_stride * math::bytes_of(in.storage, int64_t(sizeof(S)));
  a.means2d = in.means2d + 2 * at, a.conics = in.conics + 3 * at, a.opacities = in.opacities + at;
  a.background = in.background ? in.background + view * in.background_stride : nullptr;
  a.ids = in.ids, a.tile_offsets = in.tile_offsets + view * tiles;
  a.channels = in.channels, a.width = in.width, a.height = in.height, a.tiles_x = tiles_along(in.width);
  a.first_pixel = view * in.width * in.height;
  if (in.pixels) a.pixels = in.pixels, a.pixel_offsets = in.pixel_offsets + view * tiles;
  return a;
}

// Where the rows of a view begin: sampled pixels of all views have their rows together.
template <class S>
int64_t first_row(const BlendInput<S>& in, int64_t view) {
  return in.pixels ? 0 : view * in.width * in.height;
}

// The rows of an image, `stride` numbers each.
template <class S, class P>
P* at_row(P* image, const BlendInput<S>& in, int64_t view, int64_t stride) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return static_cast<Byte*>(image) + first_row(in, view) * stride * math::bytes_of(in.storage, int64_t(sizeof(S)));
}

// The splats of all views, ready for blending.
template <class S>
Memory pack_views(const BlendInput<S>& in, const Threads& threads) {
  Memory packed = allocate(in.views * in.n * int64_t(sizeof(Packed<S>)));
  for (int64_t view = 0; view < in.views; ++view) {
    BlendArgs<S> a = view_args(in, view);
    a.packed = static_cast<Packed<S>*>(packed.get()) + view * in.n;
    parallel_ranges(threads, in.n, 1024, [&](int64_t begin, int64_t end) { kernels().of<S>().pack(a, begin, end); });
  }
  return packed;
}

// A run of tiles whose records lie one after another: records of tile t start at offset[t - begin].
struct Group {
  int64_t begin, end;
  std::vector<int64_t> offset;
};

std::vector<Group> make_groups(const int32_t* used, int64_t tiles, int64_t record_bytes) {
  std::vector<Group> groups;
  int64_t total = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    if (groups.empty() || (total + used[t]) * record_bytes > kGroupBytes) groups.push_back({t, t, {}}), total = 0;
    groups.back().offset.push_back(total);
    groups.back().end = t + 1;
    total += used[t];
  }
  for (Group& g : groups) g.offset.push_back(g.offset.back() + used[g.end - 1]);
  return groups;
}

// The records of a group of tiles of one view: of tile t, count[t] records.
template <class S>
struct Records {
  const BlendArgs<S>& view;
  const Group& group;
  const int32_t* count;
  const S* records;
  int64_t size;
};

// Columns [first, first + columns) of the records are added to the rows of Gaussians.
template <class S>
struct Sink {
  S* rows;
  int64_t stride, first, columns;
};

// Adds records to Gaussians [id_begin, id_end), in the order of the tiles: the sum of a Gaussian does not depend on how
// Gaussians are spread over threads.
template <class S>
void add_records(const Records<S>& r, std::initializer_list<Sink<S>> sinks, int64_t id_begin, int64_t id_end) {
  constexpr int kBlock = 1024, kPrefetch = 8;
  int32_t matches[kBlock];
  for (int64_t t = r.group.begin; t < r.group.end; ++t) {
    const int32_t* ids = r.view.ids + r.view.tile_offsets[t];
    const S* of_tile = r.records + r.group.offset[size_t(t - r.group.begin)] * r.size;
    for (int first = 0; first < r.count[t]; first += kBlock) {
      int n = 0;
      for (int j = first; j < std::min(first + kBlock, r.count[t]); ++j) {
        matches[n] = j;
        n += (ids[j] >= id_begin) & (ids[j] < id_end);
      }
      for (int m = 0; m < n; ++m) {
        const int64_t id = ids[matches[m]], ahead = ids[matches[std::min(m + kPrefetch, n - 1)]];
        const S* record = of_tile + matches[m] * r.size;
        for (const Sink<S>& sink : sinks) {
          __builtin_prefetch(sink.rows + ahead * sink.stride, 1);
          S* row = sink.rows + id * sink.stride;
          for (int64_t c = 0; c < sink.columns; ++c) row[c] += record[sink.first + c];
        }
      }
    }
  }
}

template <class S>
void finish_geometry(const BlendInput<S>& in, const S* moments, const BlendGrads<S>& grads, int64_t at, int64_t begin,
                     int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = at + i;
    math::gradients_from_moments(moments + i * kMoments, in.conics + 3 * k, in.opacities[k], grads.v_means2d + 2 * k,
                                 grads.v_conics + 3 * k, grads.v_opacities + k,
                                 grads.absgrad ? grads.absgrad + 2 * k : nullptr);
  }
}

}  // namespace

void parallel_ranges(const Threads& threads, int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  const int64_t items = (n + grain - 1) / grain, workers = std::min<int64_t>(threads.count, items);
  if (workers <= 1) {
    if (n > 0) f(0, n);
    return;
  }
  threads.run([&](int worker) {
    if (worker >= workers) return;
    const int64_t begin = items * worker / workers * grain, end = items * (worker + 1) / workers * grain;
    f(begin, std::min(end, n));
  });
}

void parallel_pieces(const Threads& threads, int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  for_each_item(threads, 0, (n + grain - 1) / grain,
                [&](int64_t item, int) { f(item * grain, std::min((item + 1) * grain, n)); });
}

void prefer_large_pages(void* array, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (uintptr_t(array) + kPage - 1) / kPage * kPage,
                  end = (uintptr_t(array) + uintptr_t(bytes)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)array, (void)bytes;
#endif
}

template <class S>
void blend(const BlendInput<S>& in, void* image, S* transmittance, int32_t* last, const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  prefer_large_pages(image, in.rows * in.channels * math::bytes_of(in.storage, int64_t(sizeof(S))));
  const Memory packed = pack_views(in, threads);
  const auto scratch = scratch_per_worker(threads, kernel.blend_scratch(in.channels, in.storage));
  for_each_item(threads, 0, in.views * tiles, [&](int64_t item, int worker) {
    const int64_t view = item / tiles, row = first_row(in, view);
    BlendArgs<S> a = view_args(in, view);
    a.packed = static_cast<Packed<S>*>(packed.get()) + view * in.n;
    a.image = at_row(image, in, view, in.channels), a.transmittance = transmittance + row, a.last = last + row;
    kernel.blend_tile(a, item % tiles, scratch[size_t(worker)].get());
  });
}

template <class S>
std::vector<int32_t> used_lists(const BlendInput<S>& in, const int32_t* last) {
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  std::vector<uint32_t> used(size_t(in.views * tiles), 0);  // -1 is then the largest
  if (in.pixels)
    for (int64_t t = 0; t < in.views * tiles; ++t)
      for (int64_t i = in.pixel_offsets[t]; i < in.pixel_offsets[t + 1]; ++i)
        used[size_t(t)] = std::max(used[size_t(t)], uint32_t(last[i]));
  else
    for (int64_t row = 0; row < in.views * in.height; ++row) {
      const int64_t tile = tile_of_pixel(row * in.width, in.width, in.height);
      for (int x = 0; x < in.width; ++x) {
        uint32_t& most = used[size_t(tile + x / math::kTile)];
        most = std::max(most, uint32_t(last[row * in.width + x]));
      }
    }
  std::vector<int32_t> result(used.size());
  std::transform(used.begin(), used.end(), result.begin(), [](uint32_t n) { return std::max(int32_t(n), -1); });
  return result;
}

namespace {

int64_t most_records(const std::vector<Group>& groups) {
  int64_t most = 0;
  for (const Group& g : groups) most = std::max(most, g.offset.back());
  return most;
}

// Gradients of the geometry, and of few channels of values.
template <class S>
void geometry_backward(const BlendInput<S>& in, const int32_t* used, const BlendGrads<S>& grads, S* v_values,
                       const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  const int64_t longest = in.views * tiles > 0 ? *std::max_element(used, used + in.views * tiles) : 0;
  const auto scratch = scratch_per_worker(threads, kernel.blend_backward_scratch(longest));
  const Memory packed = pack_views(in, threads);
  const Memory moments = allocate(in.n * int64_t(kMoments * sizeof(S)));
  S* sums = static_cast<S*>(moments.get());

  for (int64_t view = 0; view < in.views; ++view) {
    BlendBackwardArgs<S> a{};
    a.forward = view_args(in, view);
    a.forward.packed = static_cast<Packed<S>*>(packed.get()) + view * in.n;
    a.used = used + view * tiles;
    a.v_image = at_row(grads.v_image, in, view, in.channels);
    a.v_transmittance = grads.v_transmittance + first_row(in, view);
    a.to_values = v_values != nullptr;
    a.record_size = kMoments + (a.to_values ? (in.channels + 3) / 4 * 4 : 0);
    std::fill_n(sums, in.n * kMoments, S(0));

    const auto groups = make_groups(a.used, tiles, a.record_size * int64_t(sizeof(S)));
    const Memory records = allocate(most_records(groups) * a.record_size * int64_t(sizeof(S)));
    for (const Group& g : groups) {
      for_each_item(threads, g.begin, g.end, [&](int64_t tile, int worker) {
        BlendBackwardArgs<S> of_tile = a;
        of_tile.records = static_cast<S*>(records.get()) + g.offset[size_t(tile - g.begin)] * a.record_size;
        if (a.used[tile]) kernel.blend_backward_tile(of_tile, tile, scratch[size_t(worker)].get());
      });
      const Records<S> of_group = {a.forward, g, a.used, static_cast<const S*>(records.get()), a.record_size};
      const Sink<S> to_moments = {sums, kMoments, 0, kMoments};
      parallel_ranges(threads, in.n, 256, [&](int64_t begin, int64_t end) {
        if (v_values)
          add_records(of_group, {to_moments, {v_values + view * in.values_stride, in.channels, kMoments, in.channels}},
                      begin, end);
        else
          add_records(of_group, {to_moments}, begin, end);
      });
    }
    parallel_ranges(threads, in.n, 256,
                    [&](int64_t begin, int64_t end) { finish_geometry(in, sums, grads, view * in.n, begin, end); });
  }
}

// A window of channels of one view's lift.
template <class S>
void lift_window(const BlendInput<S>& in, const LiftArgs<S>& out, int64_t view, const LiftTileArgs<S>& a,
                 const std::vector<Memory>& scratch, const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  const int64_t first = a.first_channel, images = std::min(a.channels, in.channels - first);  // the rest: ones
  const int64_t n = in.values_stride ? view * in.n : 0;
  const auto groups = make_groups(a.used, tiles, a.record_size * int64_t(sizeof(S)));
  const Memory records = allocate(most_records(groups) * a.record_size * int64_t(sizeof(S)));
  std::vector<int32_t> written(size_t(tiles), 0);
  for (const Group& g : groups) {
    for_each_item(threads, g.begin, g.end, [&](int64_t tile, int worker) {
      LiftTileArgs<S> of_tile = a;
      of_tile.records = static_cast<S*>(records.get()) + g.offset[size_t(tile - g.begin)] * a.record_size;
      if (a.used[tile]) written[size_t(tile)] = kernel.lift_tile(of_tile, tile, scratch[size_t(worker)].get());
    });
    const Records<S> of_group = {a.forward, g, written.data(), static_cast<const S*>(records.get()), a.record_size};
    const Sink<S> to_sums = {out.sums + n * in.channels + first, in.channels, 0, images};
    parallel_ranges(threads, in.n, 256, [&](int64_t begin, int64_t end) {
      if (images < a.channels)
        add_records(of_group, {to_sums, {out.total + n, 1, images, 1}}, begin, end);
      else
        add_records(of_group, {to_sums}, begin, end);
    });
  }
}

// used: how much of each tile's list to walk at most.
template <class S>
void lift(const BlendInput<S>& in, const int32_t* used, const LiftArgs<S>& out, const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  const int64_t rows = in.values_stride ? in.views * in.n : in.n, channels = in.channels + (out.total ? 1 : 0);
  const int64_t longest = in.views * tiles > 0 ? *std::max_element(used, used + in.views * tiles) : 0;
  const int64_t fitting = kRecordBytes / (std::max<int64_t>(longest, 1) * int64_t(sizeof(S)));
  const int64_t window = std::min(channels, std::max<int64_t>(fitting / kernel.lanes * kernel.lanes, kernel.lanes));
  prefer_large_pages(out.sums, rows * in.channels * int64_t(sizeof(S)));
  parallel_ranges(threads, rows, 256, [&](int64_t begin, int64_t end) {
    std::fill(out.sums + begin * in.channels, out.sums + end * in.channels, S(0));
    if (out.total) std::fill(out.total + begin, out.total + end, S(0));
  });
  const Memory packed = pack_views(in, threads);
  const auto scratch = scratch_per_worker(threads, kernel.lift_scratch());
  for (int64_t view = 0; view < in.views; ++view)
    for (int64_t first = 0; first < channels; first += window) {
      LiftTileArgs<S> a{};
      a.forward = view_args(in, view);
      a.forward.packed = static_cast<Packed<S>*>(packed.get()) + view * in.n;
      a.used = used + view * tiles;
      a.image = at_row(out.image, in, view, in.channels);
      a.factors = out.factors ? out.factors + first_row(in, view) : nullptr;
      a.first_channel = first, a.channels = std::min(window, channels - first);
      a.record_size = (a.channels + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
      lift_window(in, out, view, a, scratch, threads);
    }
}

}  // namespace

template <class S>
void lift(const BlendInput<S>& in, const LiftArgs<S>& out, const Threads& threads) {
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  std::vector<int32_t> listed(size_t(in.views * tiles));
  for (size_t t = 0; t < listed.size(); ++t) listed[t] = int32_t(in.tile_offsets[t + 1] - in.tile_offsets[t]);
  lift(in, listed.data(), out, threads);
}

template <class S>
void blend_backward(const BlendInput<S>& in, const int32_t* used, const BlendGrads<S>& grads, const Threads& threads) {
  const bool geometry = grads.v_means2d != nullptr,
             together = geometry && !is_wide(in.channels, in.storage, kWideBackward);
  if (grads.v_values && together)
    std::fill_n(grads.v_values, (in.values_stride ? in.views * in.n : in.n) * in.channels, S(0));
  if (geometry) geometry_backward(in, used, grads, together ? grads.v_values : nullptr, threads);
  if (grads.v_values && !together)
    lift(in, used, LiftArgs<S>{grads.v_image, nullptr, grads.v_values, nullptr, true}, threads);
}

template <class S>
void seen_pairs(const BlendInput<S>& in, bool* seen, const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  const auto scratch = scratch_per_worker(threads, kernel.seen_scratch());
  std::fill(seen, seen + in.pairs, false);
  for (int64_t view = 0; view < in.views; ++view) {
    const BlendArgs<S> a = view_args(in, view);
    for_each_item(threads, 0, tiles,
                  [&](int64_t tile, int worker) { kernel.seen_tile(a, tile, seen, scratch[size_t(worker)].get()); });
  }
}

template <class S>
void ssim(SsimArgs<S> args, int64_t images, bool backward, const Threads& threads) {
  constexpr int64_t kBand = 32;  // rows per piece of work; each piece filters 10 rows of its neighbours again
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t bands = (args.height + kBand - 1) / kBand, size = args.height * args.row;
  const auto scratch = scratch_per_worker(threads, kernel.ssim_scratch(args.row, kBand));
  for_each_item(threads, 0, images * bands, [&](int64_t item, int worker) {
    SsimArgs<S> a = args;
    const int64_t at = item / bands * size, begin = item % bands * kBand, end = std::min(begin + kBand, args.height);
    a.image1 += at, a.image2 += at, a.d_mu += at, a.d_var += at, a.d_cov += at;
    if (backward)
      a.v_map += at, a.v_image1 += at;
    else
      a.map += at;
    (backward ? kernel.ssim_backward_rows : kernel.ssim_rows)(a, begin, end, scratch[size_t(worker)].get());
  });
}

template <class S>
void contrast(const ContrastArgs<S>& a, bool backward, const Threads& threads) {
  constexpr int64_t kRows = 64;  // pixels per piece of work, each of which sums gradients of the others on its own
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t pieces = (a.pixels + kRows - 1) / kRows, stride = contrast_stride(a.others), sums = a.dim * stride;
  const Memory shared = allocate(kernel.contrast_shared(a));
  kernel.contrast_prepare(a, shared.get());
  const auto scratch = scratch_per_worker(threads, kernel.contrast_scratch(a));
  const bool to_others = backward && a.v_other_features;
  const Memory partial = allocate(to_others ? pieces * sums * int64_t(sizeof(S)) : 0);
  S* const v_columns = static_cast<S*>(partial.get());
  for_each_item(threads, 0, pieces, [&](int64_t item, int worker) {
    const int64_t begin = item * kRows, end = std::min(begin + kRows, a.pixels);
    void* const own = scratch[size_t(worker)].get();
    if (!backward) return kernel.contrast_rows(a, shared.get(), begin, end, own);
    S* const v = to_others ? v_columns + item * sums : nullptr;
    if (v) std::fill(v, v + sums, S(0));
    kernel.contrast_backward_rows(a, shared.get(), begin, end, v, own);
  });
  if (!to_others) return;
  if (pieces == 0) std::fill(a.v_other_features, a.v_other_features + a.others * a.dim, S(0));
  parallel_ranges(threads, pieces == 0 ? 0 : a.dim, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = 1; item < pieces; ++item)
      for (int64_t i = begin * stride; i < end * stride; ++i) v_columns[i] += v_columns[item * sums + i];
    for (int64_t k = begin; k < end; ++k)
      for (int64_t j = 0; j < a.others; ++j) a.v_other_features[j * a.dim + k] = v_columns[k * stride + j];
  });
}

template void blend(const BlendInput<float>&, void*, float*, int32_t*, const Threads&);
template void blend(const BlendInput<double>&, void*, double*, int32_t*, const Threads&);
template void lift(const BlendInput<float>&, const LiftArgs<float>&, const Threads&);
template void lift(const BlendInput<double>&, const LiftArgs<double>&, const Threads&);
template void blend_backward(const BlendInput<float>&, const int32_t*, const BlendGrads<float>&, const Threads&);
template void blend_backward(const BlendInput<double>&, const int32_t*, const BlendGrads<double>&, const Threads&);
template std::vector<int32_t> used_lists(const BlendInput<float>&, const int32_t*);
template std::vector<int32_t> used_lists(const BlendInput<double>&, const int32_t*);
template void seen_pairs(const BlendInput<float>&, bool*, const Threads&);
template void seen_pairs(const BlendInput<double>&, bool*, const Threads&);
template void ssim(SsimArgs<float>, int64_t, bool, const Threads&);
template void ssim(SsimArgs<double>, int64_t, bool, const Threads&);
template void contrast(const ContrastArgs<float>&, bool, const Threads&);
template void contrast(const ContrastArgs<double>&, bool, const Threads&);

}  // namespace gsfields::cpu
