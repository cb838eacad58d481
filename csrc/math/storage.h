// How values and images are stored: in the scalar that the kernels compute in, or in one of half its size.
#pragma once

#include <cstdint>
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "common.h"

namespace gsfields::math {

enum class Storage : int { kFull, kBfloat16, kFloat16 };

GSF_HD int64_t bytes_of(Storage storage, int64_t full) { return storage == Storage::kFull ? full : 2; }

GSF_HD float from_bfloat16(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

// Halves to even; what is not a number stays so.
GSF_HD uint16_t to_bfloat16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return uint16_t(x == x ? (bits + 0x7fffu + (bits >> 16 & 1)) >> 16 : 0x7fc0u);
}

GSF_HD float from_float16(uint16_t bits) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(bits));
#else
  return float(__builtin_bit_cast(_Float16, bits));
#endif
}

GSF_HD uint16_t to_float16(float x) {
#if defined(__CUDACC__)
  return __half_as_ushort(__float2half_rn(x));
#else
  return __builtin_bit_cast(uint16_t, _Float16(x));
#endif
}

// Element i of an array. Doubles are stored in full only.
template <class S>
GSF_HD S load_as(const void* array, int64_t i, Storage storage) {
  if (sizeof(S) == 4 && storage == Storage::kBfloat16) return S(from_bfloat16(static_cast<const uint16_t*>(array)[i]));
  if (sizeof(S) == 4 && storage == Storage::kFloat16) return S(from_float16(static_cast<const uint16_t*>(array)[i]));
  return static_cast<const S*>(array)[i];
}

template <class S>
GSF_HD void store_as(void* array, int64_t i, Storage storage, S x) {
  if (sizeof(S) == 4 && storage == Storage::kBfloat16)
    static_cast<uint16_t*>(array)[i] = to_bfloat16(float(x));
  else if (sizeof(S) == 4 && storage == Storage::kFloat16)
    static_cast<uint16_t*>(array)[i] = to_float16(float(x));
  else
    static_cast<S*>(array)[i] = x;
}

}  // namespace gsfields::math
