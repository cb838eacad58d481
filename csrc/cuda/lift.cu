// The adjoint of the blend in its values on the GPU, front to back: a block takes one tile, a thread one pixel, and a
// warp sums what its pixels owe to a Gaussian before it is added to memory.
#include "dispatch.h"
#include "sums.h"
#include "walk.h"

namespace gsfields::cuda {
namespace {

template <class S>
struct Lift {
  const void* image;  // rows of [C]
  const S* factors;   // rows, or null
  Rows<S> rows;
  int64_t first_column;
  Records<S> records;
};

// Columns [column, column + C) of what a pixel hands back: its row of the image, then a one, times its factor.
template <int C, class S>
__device__ void load_image(const BlendInput<S>& in, const Lift<S>& lift, int64_t row, int column, S* owns) {
  const S factor = row >= 0 && lift.factors ? lift.factors[row] : S(1);
#pragma unroll
  for (int c = 0; c < C; ++c) {
    owns[c] = row >= 0 && column + c == in.channels ? factor : S(0);
    if (row >= 0 && column + c < in.channels)
      owns[c] = factor * math::load_as<S>(lift.image, row * in.channels + column + c, in.storage);
  }
}

// The blocks of all tiles for C columns from first_column on, then of all tiles for the next.
template <class S, int C>
__global__ void __launch_bounds__(kTilePixels, resident_lifts<S>(C))
    lift_kernel(const BlendInput<S> in, const Packed<S>* packed, const Lift<S> lift, unsigned tiles) {
  GSF_SHARED(BatchSplat<S>, splats, [kTilePixels]);
  GSF_SHARED(Candidate<S>, candidates, [kTilePixels]);
  GSF_SHARED(Box<S>, boxes, [kPatches]);
  const Batch<S> batch = {splats, candidates, boxes};
  const Tile tile = locate(in, blockIdx.x % tiles);
  if (!wants(lift.records, tile)) return;

  // The column that this lane sums.
  const int first_column = int(lift.first_column) + int(blockIdx.x / tiles) * C;
  const int index = scattered_index<C>(lane_id());
  Column<S> column = {nullptr, 0};
  if (index >= 0) column = find_column(lift.rows, first_column + index);
  if (lift.rows.per_view && column.first) column.first += tile.view * in.n * column.stride;

  for (int round = 0; round < count_rounds(in, tile.index); ++round) {
    const int64_t row = find_row(in, tile, round);
    FrontPixel<S> p = start_front(in, tile, row, boxes);
    S owns[C];
    load_image<C>(in, lift, row, first_column, owns);
    front_to_back(
        in, packed, tile, batch, p, [](int) {},
        [&](int k, int position) {
          const S weight = step_into(p, splats[k]);
          if (!__any_sync(kFullWarp, weight > 0)) return;
          S owed[C];
#pragma unroll
          for (int c = 0; c < C; ++c) owed[c] = weight > 0 ? weight * owns[c] : S(0);
          const S sum = reduce_scatter(owed);
          if (!column.first) return;
          if (lift.records.sums)
            add_to_record(lift.records, tile, position, index, sum);
          else
            atomicAdd(column.first + int64_t(candidates[k].id) * column.stride, sum);
        });
  }
}

// Adds to the rows.
template <class S>
cudaError_t lift_few(const BlendInput<S>& in, const Packed<S>* packed, const LiftArgs<S>& a, const Rows<S>& rows,
                     const Allocate& allocate, cudaStream_t stream) {
  const int64_t tiles = count_tiles(in.views, in.width, in.height), columns = count_columns(rows);
  return pick_channels<S>(columns, [&](auto count) {
    const auto launch = [&](const Records<S>& records, int64_t first_column, int64_t windows) {
      [[maybe_unused]] constexpr int C = decltype(count)::value;
      const Lift<S> lift = {a.image, a.factors, rows, first_column, records};
      return GSF_LAUNCH((lift_kernel<S, C>), windows * tiles, kTilePixels, stream, in, packed, lift, unsigned(tiles));
    };
    if (!a.deterministic) return launch({}, 0, blocks_for(columns, count()));
    const auto fill = [&](const Records<S>& records, int64_t column) { return launch(records, column, 1); };
    return sum_in_order<S>(in, rows, {kPatches, count()}, fill, allocate, stream);
  });
}

cudaError_t lift_many(const BlendInput<float>& in, const Packed<float>* packed, const LiftArgs<float>& a,
                      const Rows<float>& rows, const Allocate& allocate, cudaStream_t stream) {
  if (!a.deterministic) return wide_lift(in, packed, a, sums_by_gaussian(a.sums, a.total, in.channels), stream);
  const auto fill = [&](const Records<float>& r, int64_t column) {
    return wide_lift(in, packed, a, {r.sums, nullptr, r.width, column, r.width, true, r.first_pair, r.pairs}, stream);
  };
  GSF_STEP(
      sum_in_order<float>(in, {a.sums, nullptr, in.channels, rows.per_view}, {1, kWideRecord}, fill, allocate, stream));
  if (!a.total) return cudaSuccess;
  // The weights alone, as the sums of an image of no channels.
  BlendInput<float> ones = in;
  ones.channels = 0;
  return lift_few(ones, packed, a, {nullptr, a.total, 0, rows.per_view}, allocate, stream);
}

}  // namespace

template <class S>
cudaError_t lift_packed(const BlendInput<S>& in, const Packed<S>* packed, const LiftArgs<S>& a,
                        const Allocate& allocate, cudaStream_t stream) {
  const Rows<S> rows = {a.sums, a.total, in.channels, in.values_stride != 0};
  const int64_t count = rows.per_view ? in.views * in.n : in.n;
  GSF_STEP(zero(a.sums, count * in.channels, stream));
  if (a.total) GSF_STEP(zero(a.total, count, stream));
  if constexpr (sizeof(S) == sizeof(float))
    if (takes_wide(in)) return lift_many(in, packed, a, rows, allocate, stream);
  return lift_few(in, packed, a, rows, allocate, stream);
}

template <class S>
cudaError_t lift(const BlendInput<S>& in, const LiftArgs<S>& a, const Allocate& allocate, cudaStream_t stream) {
  auto* packed = allocate_array<Packed<S>>(allocate, in.views * in.n);
  GSF_STEP(pack(in, packed, stream));
  return lift_packed(in, packed, a, allocate, stream);
}

template cudaError_t lift_packed(const BlendInput<float>&, const Packed<float>*, const LiftArgs<float>&,
                                 const Allocate&, cudaStream_t);
template cudaError_t lift_packed(const BlendInput<double>&, const Packed<double>*, const LiftArgs<double>&,
                                 const Allocate&, cudaStream_t);
template cudaError_t lift(const BlendInput<float>&, const LiftArgs<float>&, const Allocate&, cudaStream_t);
template cudaError_t lift(const BlendInput<double>&, const LiftArgs<double>&, const Allocate&, cudaStream_t);

}  // namespace gsfields::cuda
