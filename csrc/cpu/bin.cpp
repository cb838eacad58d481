// Binning: depth sort of the visible Gaussians, then a stable counting sort into tiles.
#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <utility>

#include "../math/bounds.h"
#include "stages.h"

namespace gsfields::cpu {

namespace {

using math::kTile;

// Unsigned integers that sort like the floats they come from.
template <class S>
auto sort_key(S depth) {
  using U = std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>;
  const U bits = std::bit_cast<U>(depth);
  const U sign = U(1) << (8 * sizeof(S) - 1);
  return bits & sign ? ~bits : bits | sign;
}

// Stable least-significant-digit radix sort of indices by depth.
template <class S>
void sort_by_depth(std::vector<int32_t>& order, const S* depths) {
  using U = decltype(sort_key(S()));
  constexpr int kBits = 11, kDigits = 1 << kBits, kPasses = (8 * int(sizeof(U)) + kBits - 1) / kBits;
  struct Item {
    U key;
    int32_t index;
  };
  const size_t n = order.size();
  std::vector<Item> from(n), to(n);
  std::vector<uint32_t> counts(size_t(kPasses) * kDigits);
  for (size_t i = 0; i < n; ++i) {
    from[i] = {sort_key(depths[order[i]]), order[i]};
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

int floor_div_tile(double pixel, int tiles) {
  return int(std::clamp(std::floor(pixel / kTile), 0.0, double(tiles)));
}

// Calls f(tile) for every tile holding a pixel centre inside the Gaussian's ellipse, row by row; exact per row.
template <class S, class F>
void for_each_tile(const BinInput<S>& in, int64_t at, int tiles_x, int tiles_y, const F& f) {
  const double x = in.means2d[2 * at], y = in.means2d[2 * at + 1];
  const S* conic = in.conics + 3 * at;
  const auto e = math::make_ellipse<double>(conic[0], conic[1], conic[2], math::ellipse_level<double>(in.opacities[at]));
  const bool closed = e.det > 0;  // else rounding opened the ellipse, and the radii alone bound it
  const double rx = in.radii[2 * at], ry = in.radii[2 * at + 1];
  const double reach = closed ? std::min(ry, std::sqrt(e.aq / e.det)) : ry;
  const int row_begin = floor_div_tile(y - reach - 0.5, tiles_y), row_end = floor_div_tile(y + reach - 0.5, tiles_y - 1) + 1;
  for (int row = row_begin; row < row_end; ++row) {
    const double lo = row * kTile + 0.5 - y, hi = lo + (kTile - 1);
    if (lo > reach || hi < -reach) continue;
    double left = -rx, right = rx;
    if (closed) math::slab_interval(e, lo, hi, left, right);
    // Pixel centres lie at integers + 1/2.
    const double first = std::ceil(x + left - 0.5), last = std::floor(x + right - 0.5);
    if (last < first || last < 0) continue;
    const int begin = floor_div_tile(first, tiles_x), end = floor_div_tile(last, tiles_x - 1) + 1;
    for (int column = begin; column < end; ++column) f(row * tiles_x + column);
  }
}

}  // namespace

template <class S>
Binning<S>::Binning(const BinInput<S>& input, int64_t* tile_offsets, const Threads& threads)
    : in_(input), threads_(threads), tiles_x_(tiles_along(input.width)), tiles_y_(tiles_along(input.height)),
      views_(size_t(input.views)) {
  const int64_t tiles = int64_t(tiles_x_) * tiles_y_;
  for (int64_t b = 0; b < in_.views; ++b) {
    View& view = views_[size_t(b)];
    for (int64_t i = 0; i < in_.n; ++i)
      if (in_.radii[2 * (b * in_.n + i)] > 0) view.order.push_back(int32_t(i));
    sort_by_depth(view.order, in_.depths + b * in_.n);

    const int64_t visible = int64_t(view.order.size()), chunks = std::min<int64_t>(threads.count, visible / 256 + 1);
    view.next.assign(size_t(chunks), std::vector<int64_t>(size_t(tiles)));
    parallel_ranges(threads, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        int64_t* count = view.next[size_t(c)].data();
        for (int64_t k = visible * c / chunks; k < visible * (c + 1) / chunks; ++k)
          for_each_tile(in_, b * in_.n + view.order[size_t(k)], tiles_x_, tiles_y_, [&](int t) { ++count[t]; });
      }
    });
    for (int64_t t = 0; t < tiles; ++t) {
      tile_offsets[b * tiles + t] = total_;
      for (auto& next : view.next) total_ += std::exchange(next[size_t(t)], total_);
    }
  }
  tile_offsets[in_.views * tiles] = total_;
}

template <class S>
void Binning<S>::fill(int32_t* ids) const {
  for (int64_t b = 0; b < in_.views; ++b) {
    const View& view = views_[size_t(b)];
    const int64_t visible = int64_t(view.order.size()), chunks = int64_t(view.next.size());
    parallel_ranges(threads_, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        std::vector<int64_t> next = view.next[size_t(c)];
        for (int64_t k = visible * c / chunks; k < visible * (c + 1) / chunks; ++k) {
          const int32_t id = view.order[size_t(k)];
          for_each_tile(in_, b * in_.n + id, tiles_x_, tiles_y_, [&](int t) { ids[next[size_t(t)]++] = id; });
        }
      }
    });
  }
}

template class Binning<float>;
template class Binning<double>;

}  // namespace gsfields::cpu
