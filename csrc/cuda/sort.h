// Sums, selections and sorts over whole arrays on the GPU. Each function enqueues its work on the stream, does not
// wait, and returns the launch's error. Arrays of length 0 may be null. `allocate` gives temporary memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels.h"

namespace gsfields::cuda {

// Of all arrays here.
constexpr int64_t kMostItems = 0xffffffff;

// indices: those i in [0, n) with values[i] != 0, in order. Their number must fit.
cudaError_t select_nonzero(const int32_t* values, int64_t n, uint32_t* indices, const Allocate& allocate,
                           cudaStream_t stream);

// sums[k], k in [0, n): the 64-bit sum of values[order[j]] over j < k.
cudaError_t exclusive_sum(const int32_t* values, const uint32_t* order, int64_t n, int64_t* sums,
                          const Allocate& allocate, cudaStream_t stream);

// Two arrays of the same length, of which `current` holds the data.
template <class T>
struct DoubleBuffer {
  T *current, *other;
};

// Sorts pairs by the lowest `bits` bits of their keys; equal keys stay in order. Key: uint16_t, uint32_t or uint64_t.
// Overwrites all four arrays; when it returns, `current` tells where the sorted keys and values will be.
template <class Key>
cudaError_t sort_pairs(DoubleBuffer<Key>& keys, DoubleBuffer<uint32_t>& values, int64_t n, int bits,
                       const Allocate& allocate, cudaStream_t stream);

}  // namespace gsfields::cuda
