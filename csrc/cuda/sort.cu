// Sums, selections and sorts by CUB, in a file of their own because CUB compiles slowly. It counts in 32 unsigned bits
// where it may, for which its kernels are faster.
#include "sort.h"

#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>
#include <cuda/std/functional>

#include "launch.h"

namespace gsfields::cuda {
namespace {

// Calls f(null, bytes), which tells how much temporary memory it needs, then f(memory, bytes), which uses it.
template <class F>
cudaError_t with_temporary(const Allocate& allocate, const F& f) {
  size_t bytes = 0;
  GSF_STEP(f(nullptr, bytes));
  void* memory = allocate(std::max<int64_t>(int64_t(bytes), 1));  // null would only ask again
  return f(memory, bytes);
}

// 64-bit, so that CUB sums in 64 bits.
struct Gather {
  const int32_t* values;
  const uint32_t* order;
  __host__ __device__ int64_t operator()(int64_t k) const { return values[order[k]]; }
};

}  // namespace

cudaError_t select_nonzero(const int32_t* values, int64_t n, uint32_t* indices, const Allocate& allocate,
                           cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const thrust::counting_iterator<int64_t> all(0);
  auto* selected = static_cast<int64_t*>(allocate(sizeof(int64_t)));  // which the caller knows
  return with_temporary(allocate, [&](void* memory, size_t& bytes) {
    return cub::DeviceSelect::Flagged(memory, bytes, all, values, indices, selected, n, stream);
  });
}

cudaError_t exclusive_sum(const int32_t* values, const uint32_t* order, int64_t n, int64_t* sums,
                          const Allocate& allocate, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const auto gathered = thrust::make_transform_iterator(thrust::counting_iterator<int64_t>(0), Gather{values, order});
  return with_temporary(allocate, [&](void* memory, size_t& bytes) {
    return cub::DeviceScan::ExclusiveScan(memory, bytes, gathered, sums, ::cuda::std::plus<>{}, int64_t(0), uint32_t(n),
                                          stream);
  });
}

template <class Key>
cudaError_t sort_pairs(DoubleBuffer<Key>& keys, DoubleBuffer<uint32_t>& values, int64_t n, int bits,
                       const Allocate& allocate, cudaStream_t stream) {
  if (n == 0 || bits == 0) return cudaSuccess;
  cub::DoubleBuffer<Key> key_buffers(keys.current, keys.other);
  cub::DoubleBuffer<uint32_t> value_buffers(values.current, values.other);
  const cudaError_t error = with_temporary(allocate, [&](void* memory, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(memory, bytes, key_buffers, value_buffers, uint32_t(n), 0, bits, stream);
  });
  keys = {key_buffers.Current(), key_buffers.Alternate()};
  values = {value_buffers.Current(), value_buffers.Alternate()};
  return error;
}

template cudaError_t sort_pairs(DoubleBuffer<uint16_t>&, DoubleBuffer<uint32_t>&, int64_t, int, const Allocate&,
                                cudaStream_t);
template cudaError_t sort_pairs(DoubleBuffer<uint32_t>&, DoubleBuffer<uint32_t>&, int64_t, int, const Allocate&,
                                cudaStream_t);
template cudaError_t sort_pairs(DoubleBuffer<uint64_t>&, DoubleBuffer<uint32_t>&, int64_t, int, const Allocate&,
                                cudaStream_t);

}  // namespace gsfields::cuda
