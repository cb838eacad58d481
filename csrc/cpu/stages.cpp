// Blending, its backward pass and SSIM over whole images: scheduling, scratch memory, deterministic reductions.
#include "stages.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

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

// The backward pass keeps one record per (Gaussian, tile) pair of a group of tiles; groups are cut so that the
// records stay within this many bytes (a single tile may exceed it).
constexpr int64_t kRecordBytes = int64_t(32) << 20;

template <class S>
BlendArgs<S> view_args(const BlendInput<S>& in, int64_t view) {
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height), at = view * in.n;
  BlendArgs<S> a{};
  a.values = in.values + view * in.values_stride;
  a.means2d = in.means2d + 2 * at, a.conics = in.conics + 3 * at, a.opacities = in.opacities + at;
  a.background = in.background ? in.background + view * in.background_stride : nullptr;
  a.ids = in.ids, a.tile_offsets = in.tile_offsets + view * tiles;
  a.channels = in.channels, a.width = in.width, a.height = in.height, a.tiles_x = tiles_along(in.width);
  return a;
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
    if (groups.empty() || (total + used[t]) * record_bytes > kRecordBytes) groups.push_back({t, t, {}}), total = 0;
    groups.back().offset.push_back(total);
    groups.back().end = t + 1;
    total += used[t];
  }
  for (Group& g : groups) g.offset.push_back(g.offset.back() + used[g.end - 1]);
  return groups;
}

// What the reduction of one view adds to.
template <class S>
struct ViewGrads {
  S *moments, *v_values;  // [N, kMoments] [N, C], either may be null
};

// Adds the records of a group to Gaussians [id_begin, id_end), in the order of the tiles: the sum of a Gaussian does
// not depend on how Gaussians are spread over threads.
template <class S>
void add_records(const BlendBackwardArgs<S>& a, const Group& g, const S* records, const ViewGrads<S>& out,
                 int64_t id_begin, int64_t id_end) {
  constexpr int kBlock = 1024, kPrefetch = 8;
  int32_t matches[kBlock];
  const int64_t C = a.forward.channels;
  for (int64_t t = g.begin; t < g.end; ++t) {
    const int32_t* ids = a.forward.ids + a.forward.tile_offsets[t];
    const S* of_tile = records + g.offset[size_t(t - g.begin)] * a.record_size;
    const int used = a.used[t];
    for (int first = 0; first < used; first += kBlock) {
      int n = 0;
      for (int j = first; j < std::min(first + kBlock, used); ++j) {
        matches[n] = j;
        n += (ids[j] >= id_begin) & (ids[j] < id_end);
      }
      for (int m = 0; m < n; ++m) {
        const int64_t id = ids[matches[m]], ahead = ids[matches[std::min(m + kPrefetch, n - 1)]];
        if (out.moments) __builtin_prefetch(out.moments + ahead * kMoments, 1);
        if (out.v_values) __builtin_prefetch(out.v_values + ahead * C, 1);
        const S* record = of_tile + matches[m] * a.record_size;
        if (out.moments) {
          for (int k = 0; k < kMoments; ++k) out.moments[id * kMoments + k] += record[k];
          record += kMoments;
        }
        if (out.v_values)
          for (int64_t c = 0; c < C; ++c) out.v_values[id * C + c] += record[c];
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

template <class S>
void blend(const BlendInput<S>& in, S* image, S* transmittance, int32_t* last, const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height), pixels = int64_t(in.width) * in.height;
  const Memory packed = pack_views(in, threads);
  const auto scratch = scratch_per_worker(threads, kernel.blend_scratch(in.channels));
  for_each_item(threads, 0, in.views * tiles, [&](int64_t item, int worker) {
    const int64_t view = item / tiles;
    BlendArgs<S> a = view_args(in, view);
    a.packed = static_cast<Packed<S>*>(packed.get()) + view * in.n;
    a.image = image + view * pixels * in.channels, a.transmittance = transmittance + view * pixels;
    a.last = last + view * pixels;
    kernel.blend_tile(a, item % tiles, scratch[size_t(worker)].get());
  });
}

template <class S>
std::vector<int32_t> used_lists(const BlendInput<S>& in, const int32_t* last) {
  const int tiles_x = tiles_along(in.width), tiles_y = tiles_along(in.height);
  std::vector<uint32_t> used(size_t(in.views) * size_t(tiles_x) * size_t(tiles_y), 0);  // -1 is then the largest
  for (int64_t row = 0; row < in.views * in.height; ++row) {
    const int64_t tile_row = row / in.height * tiles_y + row % in.height / math::kTile;
    for (int x = 0; x < in.width; ++x) {
      uint32_t& most = used[size_t(tile_row * tiles_x + x / math::kTile)];
      most = std::max(most, uint32_t(last[row * in.width + x]));
    }
  }
  std::vector<int32_t> result(used.size());
  std::transform(used.begin(), used.end(), result.begin(), [](uint32_t n) { return std::max(int32_t(n), -1); });
  return result;
}

template <class S>
void blend_backward(const BlendInput<S>& in, const int32_t* used, const BlendGrads<S>& grads, const Threads& threads) {
  const Kernels<S>& kernel = kernels().of<S>();
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height), pixels = int64_t(in.width) * in.height;
  const bool geometry = grads.v_means2d != nullptr;
  if (grads.v_values) {
    const int64_t rows = in.values_stride ? in.views * in.n : in.n;
    std::fill_n(grads.v_values, rows * in.channels, S(0));
  }
  const int64_t longest = in.views * tiles > 0 ? *std::max_element(used, used + in.views * tiles) : 0;
  const auto scratch = scratch_per_worker(threads, kernel.blend_backward_scratch(in.channels, longest));
  const Memory packed = pack_views(in, threads);
  const Memory moments = allocate(geometry ? in.n * int64_t(kMoments * sizeof(S)) : 0);

  for (int64_t view = 0; view < in.views; ++view) {
    BlendBackwardArgs<S> a{};
    a.forward = view_args(in, view);
    a.forward.packed = static_cast<Packed<S>*>(packed.get()) + view * in.n;
    a.used = used + view * tiles;
    a.v_image = grads.v_image + view * pixels * in.channels, a.v_transmittance = grads.v_transmittance + view * pixels;
    a.geometry = geometry, a.to_values = grads.v_values != nullptr;
    a.record_size = (geometry ? kMoments : 0) + (a.to_values ? (in.channels + 3) / 4 * 4 : 0);
    const ViewGrads<S> out{geometry ? static_cast<S*>(moments.get()) : nullptr,
                           grads.v_values ? grads.v_values + view * in.values_stride : nullptr};
    if (geometry) std::fill_n(out.moments, in.n * kMoments, S(0));

    const auto groups = make_groups(a.used, tiles, a.record_size * int64_t(sizeof(S)));
    int64_t most = 0;
    for (const Group& g : groups) most = std::max(most, g.offset.back());
    const Memory records = allocate(most * a.record_size * int64_t(sizeof(S)));
    for (const Group& g : groups) {
      for_each_item(threads, g.begin, g.end, [&](int64_t tile, int worker) {
        BlendBackwardArgs<S> of_tile = a;
        of_tile.records = static_cast<S*>(records.get()) + g.offset[size_t(tile - g.begin)] * a.record_size;
        if (a.used[tile]) kernel.blend_backward_tile(of_tile, tile, scratch[size_t(worker)].get());
      });
      parallel_ranges(threads, in.n, 256, [&](int64_t begin, int64_t end) {
        add_records(a, g, static_cast<const S*>(records.get()), out, begin, end);
      });
    }
    if (geometry)
      parallel_ranges(threads, in.n, 256, [&](int64_t begin, int64_t end) {
        finish_geometry(in, out.moments, grads, view * in.n, begin, end);
      });
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

template void blend(const BlendInput<float>&, float*, float*, int32_t*, const Threads&);
template void blend(const BlendInput<double>&, double*, double*, int32_t*, const Threads&);
template void blend_backward(const BlendInput<float>&, const int32_t*, const BlendGrads<float>&, const Threads&);
template void blend_backward(const BlendInput<double>&, const int32_t*, const BlendGrads<double>&, const Threads&);
template std::vector<int32_t> used_lists(const BlendInput<float>&, const int32_t*);
template std::vector<int32_t> used_lists(const BlendInput<double>&, const int32_t*);
template void ssim(SsimArgs<float>, int64_t, bool, const Threads&);
template void ssim(SsimArgs<double>, int64_t, bool, const Threads&);

}  // namespace gsfields::cpu
