// Stands in for csrc/cuda/sort.cu, which takes these functions from CUB.
#include "cuda/sort.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

namespace gsfields::cuda {

cudaError_t select_nonzero(const int32_t* values, int64_t n, uint32_t* indices, const Allocate&, cudaStream_t stream) {
  emulator::enqueue("select_nonzero", stream, [=]() mutable {
    for (int64_t i = 0; i < n; ++i)
      if (values[i]) *indices++ = uint32_t(i);
  });
  return cudaSuccess;
}

cudaError_t exclusive_sum(const int32_t* values, const uint32_t* order, int64_t n, int64_t* sums, const Allocate&,
                          cudaStream_t stream) {
  emulator::enqueue("exclusive_sum", stream, [=] {
    int64_t sum = 0;
    for (int64_t k = 0; k < n; ++k) sums[k] = sum, sum += values[order[k]];
  });
  return cudaSuccess;
}

// As a radix sort that takes eight bits at a time leaves them: after an odd number of rounds in the other arrays.
template <class Key>
cudaError_t sort_pairs(DoubleBuffer<Key>& keys, DoubleBuffer<uint32_t>& values, int64_t n, int bits, const Allocate&,
                       cudaStream_t stream) {
  if (n == 0 || bits == 0) return cudaSuccess;
  const auto from_keys = keys;
  const auto from_values = values;
  if ((bits + 7) / 8 % 2) std::swap(keys.current, keys.other), std::swap(values.current, values.other);
  emulator::enqueue("sort_pairs", stream, [=, to_keys = keys, to_values = values] {
    const Key mask = Key(Key(-1) >> (8 * sizeof(Key) - size_t(bits)));
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), int64_t(0));
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return (from_keys.current[a] & mask) < (from_keys.current[b] & mask);
    });
    const std::vector<Key> old_keys(from_keys.current, from_keys.current + n);
    const std::vector<uint32_t> old_values(from_values.current, from_values.current + n);
    for (int64_t i = 0; i < n; ++i) {
      to_keys.current[i] = old_keys[size_t(order[size_t(i)])];
      to_values.current[i] = old_values[size_t(order[size_t(i)])];
    }
    std::memset(to_keys.other, 0xEE, size_t(n) * sizeof(Key));
    std::memset(to_values.other, 0xEE, size_t(n) * sizeof(uint32_t));
  });
  return cudaSuccess;
}

template cudaError_t sort_pairs(DoubleBuffer<uint16_t>&, DoubleBuffer<uint32_t>&, int64_t, int, const Allocate&,
                                cudaStream_t);
template cudaError_t sort_pairs(DoubleBuffer<uint32_t>&, DoubleBuffer<uint32_t>&, int64_t, int, const Allocate&,
                                cudaStream_t);
template cudaError_t sort_pairs(DoubleBuffer<uint64_t>&, DoubleBuffer<uint32_t>&, int64_t, int, const Allocate&,
                                cudaStream_t);

}  // namespace gsfields::cuda
