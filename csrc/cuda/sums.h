// Where the sums over the pixels of a tile go that its Gaussians receive: dL/dvalues, moments, lifted images. A warp
// sums over its own pixels. Then it adds to the rows of the Gaussians by atomic additions, whose order and so the last
// bits vary; or it leaves the sums in records of the pair of Gaussian and tile, which are added up in order.
#pragma once

#include <functional>

#include "kernels.h"
#include "tile.h"

namespace gsfields::cuda {

// Rows of sums, [N,...] over the views too, or [B,N,...]; column number `columns`, if there is one, has an array of its
// own.
template <class S>
struct Rows {
  S *sums, *total;  // rows of `columns`, rows of 1; total may be null
  int64_t columns;
  bool per_view;
};

template <class S>
int64_t count_columns(const Rows<S>& rows) {
  return rows.columns + (rows.total != nullptr);
}

// A column of all rows: of row i at first[i * stride]. first is null where there is no such column.
template <class S>
struct Column {
  S* first;
  int stride;
};

template <class S>
__device__ Column<S> find_column(const Rows<S>& rows, int64_t column) {
  if (column < rows.columns) return {rows.sums + column, int(rows.columns)};
  return {column == rows.columns ? rows.total : nullptr, 1};
}

// Records of the pairs [first_pair, first_pair + pairs) of the lists (places in ids), [pairs, each, width].
template <class S>
struct Records {
  S* sums;  // null: no records, but atomic additions
  int64_t first_pair, pairs;
  int64_t each;  // records per pair: one for each warp of a block, or one
  int64_t width;
};

// Whether a walk of the tile would change anything.
template <class S>
__device__ bool wants(const Records<S>& records, const Tile& tile) {
  return !records.sums ||
         (tile.begin < records.first_pair + records.pairs && tile.begin + tile.listed > records.first_pair);
}

// Adds to column `index` of this warp's record, one of kPatches, of a place in the tile's list.
template <class S>
__device__ void add_to_record(const Records<S>& records, const Tile& tile, int position, int index, S sum) {
  const int64_t pair = tile.begin + position - records.first_pair;
  if (pair < 0 || pair >= records.pairs) return;
  records.sums[(pair * kPatches + threadIdx.x / kWarp) * records.width + index] += sum;
}

// How records are made: so many for each pair, of at most so many columns at a time.
struct RecordShape {
  int64_t each, width;
};

// Adds to the rows what fill(records, first_column) leaves in zeroed records of columns [first_column, first_column +
// records.width): for part after part of the pairs, so many as kRecordBytes hold. A Gaussian's pairs are added up in
// the order of tiles, the records of a pair in theirs. cudaErrorInvalidValue where rows are 2^32 or more.
template <class S>
cudaError_t sum_in_order(const BlendInput<S>& in, const Rows<S>& rows, const RecordShape& shape,
                         const std::function<cudaError_t(const Records<S>& records, int64_t first_column)>& fill,
                         const Allocate& allocate, cudaStream_t stream);

// As lift(), with Gaussians already packed.
template <class S>
cudaError_t lift_packed(const BlendInput<S>& in, const Packed<S>* packed, const LiftArgs<S>& a,
                        const Allocate& allocate, cudaStream_t stream);

}  // namespace gsfields::cuda
