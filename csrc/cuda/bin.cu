// Binning on the GPU: the splats that reach a tile are sorted by depth, list their tiles in that order, and a stable
// sort by tile makes the list of each tile. The maths is csrc/math/tiles.h.
//
// A splat is one Gaussian in one view, numbered view * N + Gaussian in 32 bits; a pair is a tile, numbered over all
// views, and a splat that reaches it.
#include "kernels.h"

#include <algorithm>
#include <bit>

#include "../math/tiles.h"
#include "launch.h"
#include "sort.h"
#include "tunables.h"
#include "unfused.h"
#include "warp.h"

namespace gsfields::cuda {
namespace {

template <class S>
struct BinArgs : BinInput<S> {
  int tiles_x, tiles_y;
};

// Listing must find just the tiles that counting found, for which memory was set aside.
template <class S>
using Footprint = math::Footprint<Unfused<S>>;

template <class S>
using DepthKey = decltype(math::sort_key(S()));

struct Totals {
  unsigned long long splats, pairs;  // the type of atomicAdd
};

// The threads that share the work on one splat: number `rank` of `size`.
struct Team {
  int rank, size;
};
constexpr Team kAlone = {0, 1};
__device__ Team whole_warp() { return {lane_id(), kWarp}; }

// Calls f(lane) with the whole warp for every lane that is marked.
template <class F>
__device__ void for_marked_lanes(bool marked, const F& f) {
  for (unsigned todo = __ballot_sync(kFullWarp, marked); todo; todo &= todo - 1) f(__ffs(int(todo)) - 1);
}

template <class S>
__device__ Footprint<S> load_footprint(const BinArgs<S>& a, int64_t splat) {
  using U = Unfused<S>;
  const S *mean = a.means2d + 2 * splat, *conic = a.conics + 3 * splat;
  const int32_t* radii = a.radii + 2 * splat;
  return math::make_footprint(U(mean[0]), U(mean[1]), U(S(radii[0])), U(S(radii[1])), U(conic[0]), U(conic[1]),
                              U(conic[2]), U(a.opacities[splat]), a.tiles_y);
}

// The part of the team's thread.
template <class S>
__device__ int count_tiles(const BinArgs<S>& a, const Footprint<S>& f, Team team) {
  int tiles = 0;
  for (int row = f.rows.begin + team.rank; row < f.rows.end; row += team.size)
    tiles += math::columns(f, row, a.tiles_x).size();
  return tiles;
}

// Writes the pairs of a splat to keys[at...] and ids[at...].
template <class S, class Key>
__device__ void list_tiles(const BinArgs<S>& a, uint32_t splat, int64_t at, Team team, Key* keys, uint32_t* ids) {
  const Footprint<S> f = load_footprint(a, splat);
  const uint32_t n = uint32_t(a.n), view = splat / n, id = splat - view * n;
  for (int row = f.rows.begin; row < f.rows.end; ++row) {
    const math::Range columns = math::columns(f, row, a.tiles_x);
    const uint32_t first = (view * uint32_t(a.tiles_y) + uint32_t(row)) * uint32_t(a.tiles_x) + uint32_t(columns.begin);
    for (int column = team.rank; column < columns.size(); column += team.size) {
      keys[at + column] = Key(first + uint32_t(column));
      ids[at + column] = id;
    }
    at += columns.size();
  }
}

// Adds what the block found to the totals.
__device__ void add_to_totals(int tiles, Totals* totals) {
  GSF_SHARED(int64_t, pairs_of_warp, [kBinBlock / kWarp]);
  int64_t own[] = {tiles};
  const int64_t pairs = reduce_scatter(own);
  if (lane_id() == 0) pairs_of_warp[threadIdx.x / kWarp] = pairs;
  const int splats = __syncthreads_count(tiles > 0);
  if (threadIdx.x != 0 || splats == 0) return;
  int64_t sum = 0;
  for (int warp = 0; warp < kBinBlock / kWarp; ++warp) sum += pairs_of_warp[warp];
  atomicAdd(&totals->splats, (unsigned long long)splats);
  atomicAdd(&totals->pairs, (unsigned long long)sum);
}

// How many tiles each splat reaches, 0 if it is culled.
template <class S>
__global__ void __launch_bounds__(kBinBlock) count_kernel(const BinArgs<S> a, int32_t* tiles_each, Totals* totals) {
  const int64_t splat = int64_t(blockIdx.x) * kBinBlock + threadIdx.x;
  const bool here = splat < a.views * a.n;
  Footprint<S> f = {};
  if (here && a.radii[2 * splat] > 0) f = load_footprint(a, splat);
  const bool large = f.rows.size() > kBinRowsAlone;
  int tiles = large ? 0 : count_tiles(a, f, kAlone);
  for_marked_lanes(large, [&](int lane) {
    int part[] = {count_tiles(a, load_footprint(a, splat - lane_id() + lane), whole_warp())};
    const int sum = __shfl_sync(kFullWarp, reduce_scatter(part), 0);
    if (lane_id() == lane) tiles = sum;
  });
  if (here) tiles_each[splat] = tiles;
  add_to_totals(tiles, totals);
}

template <class S>
__global__ void __launch_bounds__(kBinBlock)
    depth_keys_kernel(const S* depths, const uint32_t* splats, int64_t count, DepthKey<S>* keys) {
  const int64_t k = int64_t(blockIdx.x) * kBinBlock + threadIdx.x;
  if (k < count) keys[k] = math::sort_key(depths[splats[k]]);
}

// The pairs of splats[k] go to [starts[k], starts[k + 1]).
template <class S, class Key>
__global__ void __launch_bounds__(kBinBlock)
    list_kernel(const BinArgs<S> a, const uint32_t* splats, int64_t count, const int32_t* tiles_each,
                const int64_t* starts, Key* keys, uint32_t* ids) {
  const int64_t k = int64_t(blockIdx.x) * kBinBlock + threadIdx.x;
  const bool here = k < count, large = here && tiles_each[splats[k]] > kBinTilesAlone;
  if (here && !large) list_tiles(a, splats[k], starts[k], kAlone, keys, ids);
  for_marked_lanes(large, [&](int lane) {
    const int64_t other = k - lane_id() + lane;
    list_tiles(a, splats[other], starts[other], whole_warp(), keys, ids);
  });
}

// A thread per tile, and one for the end: the first pair whose tile is not before its own.
template <class Key>
__global__ void __launch_bounds__(kBinBlock)
    offsets_kernel(const Key* keys, int64_t pairs, int64_t tiles, int64_t* tile_offsets) {
  const int64_t tile = int64_t(blockIdx.x) * kBinBlock + threadIdx.x;
  if (tile > tiles) return;
  int64_t low = 0, high = pairs;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (int64_t(keys[middle]) < tile)
      low = middle + 1;
    else
      high = middle;
  }
  tile_offsets[tile] = low;
}

// ---- the steps, on the host ----------------------------------------------------------------------------------------

template <class T>
DoubleBuffer<T> make_buffers(const Allocate& allocate, int64_t count) {
  return {allocate_array<T>(allocate, count), allocate_array<T>(allocate, count)};
}

// Waits for the totals: nothing else in binning waits.
template <class S>
cudaError_t count_pairs(const BinArgs<S>& a, int32_t* tiles_each, Totals& totals, const Allocate& allocate,
                        cudaStream_t stream) {
  Totals* sums = allocate_array<Totals>(allocate, 1);
  GSF_STEP(cudaMemsetAsync(sums, 0, sizeof(Totals), stream));
  GSF_STEP(GSF_LAUNCH(count_kernel, blocks_for(a.views * a.n, kBinBlock), kBinBlock, stream, a, tiles_each, sums));
  GSF_STEP(cudaMemcpyAsync(&totals, sums, sizeof(Totals), cudaMemcpyDeviceToHost, stream));
  return cudaStreamSynchronize(stream);
}

template <class S>
cudaError_t sort_by_depth(const S* depths, DoubleBuffer<uint32_t>& splats, int64_t count, const Allocate& allocate,
                          cudaStream_t stream) {
  auto keys = make_buffers<DepthKey<S>>(allocate, count);
  GSF_STEP(GSF_LAUNCH(depth_keys_kernel, blocks_for(count, kBinBlock), kBinBlock, stream, depths, splats.current, count,
                      keys.current));
  return sort_pairs(keys, splats, count, 8 * int(sizeof(DepthKey<S>)), allocate, stream);
}

// splats: `count`, by depth.
template <class Key, class S>
cudaError_t list_by_tile(const BinArgs<S>& a, const uint32_t* splats, int64_t count, const int32_t* tiles_each,
                         const int64_t* starts, int64_t pairs, int64_t tiles, uint32_t* ids, int64_t* tile_offsets,
                         const Allocate& allocate, cudaStream_t stream) {
  auto keys = make_buffers<Key>(allocate, pairs);
  DoubleBuffer<uint32_t> values = {ids, allocate_array<uint32_t>(allocate, pairs)};
  GSF_STEP(GSF_LAUNCH(list_kernel, blocks_for(count, kBinBlock), kBinBlock, stream, a, splats, count, tiles_each,
                      starts, keys.current, values.current));
  const int bits = std::bit_width(uint64_t(std::max(tiles, int64_t(1)) - 1));
  GSF_STEP(sort_pairs(keys, values, pairs, bits, allocate, stream));
  if (values.current != ids)  // not where two passes do, as for most images
    GSF_STEP(cudaMemcpyAsync(ids, values.current, size_t(pairs) * sizeof(*ids), cudaMemcpyDeviceToDevice, stream));
  return GSF_LAUNCH(offsets_kernel, blocks_for(tiles + 1, kBinBlock), kBinBlock, stream, keys.current, pairs, tiles,
                    tile_offsets);
}

}  // namespace

// Memory at its peak, beyond the results and CUB's temporaries: 4 bytes per splat; 24 (float) or 32 (double) more per
// splat that reaches a tile; 8 per pair, or 12 where the tiles of all views are more than 2^16.
template <class S>
cudaError_t bin(const BinInput<S>& in, int64_t* tile_offsets, const std::function<int32_t*(int64_t)>& make_ids,
                const Allocate& allocate, cudaStream_t stream) {
  const BinArgs<S> a{in, tiles_along(in.width), tiles_along(in.height)};
  const int64_t splats = in.views * in.n, tiles = in.views * a.tiles_x * a.tiles_y;
  if (std::max(splats, tiles) > kMostItems) return cudaErrorInvalidValue;

  auto* tiles_each = allocate_array<int32_t>(allocate, splats);
  Totals totals = {};
  GSF_STEP(count_pairs(a, tiles_each, totals, allocate, stream));
  const int64_t drawn = int64_t(totals.splats), pairs = int64_t(totals.pairs);
  if (pairs > kMostItems) return cudaErrorInvalidValue;
  auto* ids = reinterpret_cast<uint32_t*>(make_ids(pairs));

  auto order = make_buffers<uint32_t>(allocate, drawn);
  GSF_STEP(select_nonzero(tiles_each, splats, order.current, allocate, stream));
  GSF_STEP(sort_by_depth(in.depths, order, drawn, allocate, stream));
  auto* starts = allocate_array<int64_t>(allocate, drawn);
  GSF_STEP(exclusive_sum(tiles_each, order.current, drawn, starts, allocate, stream));
  const auto list = tiles <= 1 << 16 ? list_by_tile<uint16_t, S> : list_by_tile<uint32_t, S>;
  return list(a, order.current, drawn, tiles_each, starts, pairs, tiles, ids, tile_offsets, allocate, stream);
}

template cudaError_t bin(const BinInput<float>&, int64_t*, const std::function<int32_t*(int64_t)>&, const Allocate&,
                         cudaStream_t);
template cudaError_t bin(const BinInput<double>&, int64_t*, const std::function<int32_t*(int64_t)>&, const Allocate&,
                         cudaStream_t);

}  // namespace gsfields::cuda
