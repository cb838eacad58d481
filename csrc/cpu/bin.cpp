// Binning: depth sort of the visible Gaussians, then a stable counting sort into tiles.
#include <algorithm>
#include <utility>

#include "../math/tiles.h"
#include "stages.h"

namespace gsfields::cpu {

namespace {

// Stable least-significant-digit radix sort of indices by depth.
template <class S>
void sort_by_depth(std::vector<int32_t>& order, const S* depths) {
  using U = decltype(math::sort_key(S()));
  constexpr int kBits = 11, kDigits = 1 << kBits, kPasses = (8 * int(sizeof(U)) + kBits - 1) / kBits;
  struct Item {
    U key;
    int32_t index;
  };
  const size_t n = order.size();
  std::vector<Item> from(n), to(n);
  std::vector<uint32_t> counts(size_t(kPasses) * kDigits);
  for (size_t i = 0; i < n; ++i) {
    from[i] = {math::sort_key(depths[order[i]]), order[i]};
    for (int pass = 0; pass < kPasses; ++pass)
      ++counts[size_t(pass * kDigits) + (from[i].key >> (pass * kBits) & (kDigits - 1))];
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t* count = counts.data() + size_t(pass) * kDigits;
    const int shift = pass * kBits;
    if (n && count[from[0].key >> shift & (kDigits - 1)] == n) continue;  // one digit: nothing to do
    uint32_t at = 0;
    for (int d = 0; d < kDigits; ++d) at += std::exchange(count[d], at);
    for (const Item& item : from) to[count[item.key >> shift & (kDigits - 1)]++] = item;
    from.swap(to);
  }
  for (size_t i = 0; i < n; ++i) order[i] = from[i].index;
}

// Calls f(tile, id) for every pair of a chunk, in depth order.
template <class Chunk, class F>
void for_each_pair(const Chunk& chunk, const F& f) {
  const Span* span = chunk.spans.data();
  for (size_t k = 0; k < chunk.ids.size(); ++k)
    for (int32_t row = 0; row < chunk.spans_each[k]; ++row, ++span)
      for (int32_t t = 0; t < span->count; ++t) f(size_t(span->first_tile + t), chunk.ids[k]);
}

}  // namespace

template <class S>
Binning<S>::Binning(const BinInput<S>& in, int64_t* tile_offsets, const Threads& threads) : threads_(threads) {
  constexpr int64_t kBlock = 64;  // Gaussians per call of the kernel, which may write tiles_y spans for each
  const auto& kernel = kernels().of<S>();
  const int tiles_x = tiles_along(in.width), tiles_y = tiles_along(in.height);
  const int64_t tiles = int64_t(tiles_x) * tiles_y, per_view = std::max(threads.count, 1);
  chunks_.resize(size_t(in.views * per_view));
  for (int64_t view = 0; view < in.views; ++view) {
    const int64_t at = view * in.n;
    const SpanArgs<S> args{
        in.means2d + 2 * at, in.conics + 3 * at, in.opacities + at, in.radii + 2 * at, tiles_x, tiles_y};
    std::vector<int32_t> order;
    for (int64_t i = 0; i < in.n; ++i)
      if (args.radii[2 * i] > 0) order.push_back(int32_t(i));
    sort_by_depth(order, in.depths + at);

    const int64_t visible = int64_t(order.size());
    Chunk* chunks = chunks_.data() + view * per_view;
    parallel_ranges(threads, per_view, 1, [&](int64_t begin, int64_t end) {
      std::vector<Span> block(size_t(kBlock * tiles_y));
      for (int64_t c = begin; c < end; ++c) {
        Chunk& chunk = chunks[c];
        chunk.ids.assign(order.begin() + visible * c / per_view, order.begin() + visible * (c + 1) / per_view);
        chunk.spans_each.resize(chunk.ids.size());
        chunk.next.assign(size_t(tiles), 0);
        const int64_t n = int64_t(chunk.ids.size());
        for (int64_t k = 0; k < n; k += kBlock) {
          const int64_t found = kernel.tile_spans(args, chunk.ids.data() + k, std::min(kBlock, n - k), block.data(),
                                                  chunk.spans_each.data() + k);
          chunk.spans.insert(chunk.spans.end(), block.begin(), block.begin() + found);
        }
        for_each_pair(chunk, [&](size_t tile, int32_t) { ++chunk.next[tile]; });
      }
    });
    for (int64_t t = 0; t < tiles; ++t) {
      tile_offsets[view * tiles + t] = total_;
      for (int64_t c = 0; c < per_view; ++c) total_ += std::exchange(chunks[c].next[size_t(t)], total_);
    }
  }
  tile_offsets[in.views * tiles] = total_;
}

template <class S>
void Binning<S>::fill(int32_t* ids) {
  parallel_ranges(threads_, int64_t(chunks_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      int64_t* next = chunks_[size_t(c)].next.data();
      for_each_pair(chunks_[size_t(c)], [&](size_t tile, int32_t id) { ids[next[tile]++] = id; });
    }
  });
}

template class Binning<float>;
template class Binning<double>;

}  // namespace gsfields::cpu
