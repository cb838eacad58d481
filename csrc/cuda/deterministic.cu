// Sums in a fixed order. The pairs of a part are sorted by their Gaussian, which leaves those of a Gaussian in the
// order of tiles, and a thread adds up a column of a Gaussian's records.
#include <algorithm>
#include <bit>

#include "sort.h"
#include "sums.h"

namespace gsfields::cuda {
namespace {

// The view of a pair: the last whose tiles' lists begin at it or before.
template <class S>
__device__ int64_t find_view(const BlendInput<S>& in, int64_t pair) {
  const int64_t tiles = int64_t(tiles_along(in.width)) * tiles_along(in.height);
  int64_t low = 0, high = in.views - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (in.tile_offsets[middle * tiles] <= pair)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The rows that pairs [first, first + pairs) add to; `count`, beyond all rows, for an id that is none.
template <class S>
__global__ void __launch_bounds__(kSumsBlock)
    rows_kernel(const BlendInput<S> in, bool per_view, int64_t count, int64_t first, int64_t pairs, uint32_t* row,
                uint32_t* order) {
  const int64_t k = int64_t(blockIdx.x) * kSumsBlock + threadIdx.x;
  if (k >= pairs) return;
  const int32_t id = in.ids[first + k];
  const bool none = id < 0 || id >= in.n;
  row[k] = uint32_t(none ? count : id + (per_view ? find_view(in, first + k) * in.n : 0)), order[k] = uint32_t(k);
}

// A thread per record and column: where a row's records begin, it adds them all.
template <class S>
__global__ void __launch_bounds__(kSumsBlock)
    sum_kernel(const Records<S> records, int64_t first_column, const uint32_t* row, const uint32_t* order,
               const Rows<S> rows, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kSumsBlock + threadIdx.x, begin = i / records.width;
  const int64_t index = i - begin * records.width;
  if (begin >= records.pairs || row[begin] >= count) return;
  if (begin > 0 && row[begin - 1] == row[begin]) return;
  S sum = 0;
  for (int64_t k = begin; k < records.pairs && row[k] == row[begin]; ++k) {
    const S* of_pair = records.sums + order[k] * records.each * records.width + index;
    S pair_sum = 0;
    for (int64_t i = 0; i < records.each; ++i) pair_sum += of_pair[i * records.width];
    sum += pair_sum;
  }
  const Column<S> column = find_column(rows, first_column + index);
  column.first[int64_t(row[begin]) * column.stride] += sum;
}

}  // namespace

template <class S>
cudaError_t sum_in_order(const BlendInput<S>& in, const Rows<S>& rows, const RecordShape& shape,
                         const std::function<cudaError_t(const Records<S>&, int64_t)>& fill, const Allocate& allocate,
                         cudaStream_t stream) {
  const int64_t count = rows.per_view ? in.views * in.n : in.n, columns = count_columns(rows);
  if (count > kMostItems) return cudaErrorInvalidValue;
  const int64_t fit = kRecordBytes / (shape.each * shape.width * int64_t(sizeof(S)));
  const int64_t at_once = std::max<int64_t>(std::min(fit, in.pairs), 1);
  const int bits = std::bit_width(uint64_t(count));
  DoubleBuffer<uint32_t> row = {allocate_array<uint32_t>(allocate, at_once),
                                allocate_array<uint32_t>(allocate, at_once)};
  DoubleBuffer<uint32_t> order = {allocate_array<uint32_t>(allocate, at_once),
                                  allocate_array<uint32_t>(allocate, at_once)};
  auto* sums = allocate_array<S>(allocate, at_once * shape.each * shape.width);
  // Parts are sorted one after the other in the same temporary memory, of which a sort takes one piece.
  void* temporary = nullptr;
  int64_t temporary_bytes = 0;
  const Allocate again = [&](int64_t bytes) {
    if (bytes > temporary_bytes) temporary = allocate(bytes), temporary_bytes = bytes;
    return temporary;
  };
  for (int64_t first = 0; first < in.pairs; first += at_once) {
    const int64_t pairs = std::min(at_once, in.pairs - first);
    GSF_STEP(GSF_LAUNCH(rows_kernel, blocks_for(pairs, kSumsBlock), kSumsBlock, stream, in, rows.per_view, count, first,
                        pairs, row.current, order.current));
    GSF_STEP(sort_pairs(row, order, pairs, bits, again, stream));
    for (int64_t column = 0; column < columns; column += shape.width) {
      const Records<S> records = {sums, first, pairs, shape.each, std::min(shape.width, columns - column)};
      GSF_STEP(zero(sums, pairs * shape.each * records.width, stream));
      GSF_STEP(fill(records, column));
      GSF_STEP(GSF_LAUNCH(sum_kernel, blocks_for(pairs * records.width, kSumsBlock), kSumsBlock, stream, records,
                          column, row.current, order.current, rows, count));
    }
  }
  return cudaSuccess;
}

template cudaError_t sum_in_order(const BlendInput<float>&, const Rows<float>&, const RecordShape&,
                                  const std::function<cudaError_t(const Records<float>&, int64_t)>&, const Allocate&,
                                  cudaStream_t);
template cudaError_t sum_in_order(const BlendInput<double>&, const Rows<double>&, const RecordShape&,
                                  const std::function<cudaError_t(const Records<double>&, int64_t)>&, const Allocate&,
                                  cudaStream_t);

}  // namespace gsfields::cuda
