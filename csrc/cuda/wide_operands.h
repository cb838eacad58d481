// The operands of products over many channels, in each precision, and the rows of values and images that they come
// from.
//
// Products contract 16 numbers at a time. In what order is free as long as both sides agree: here the lane with
// t = lane % 4 holds four of the 16, on both sides, whatever the precision; those of the rows g = lane / 4 and g + 8 on
// the left, and of column g on the right.
#pragma once

#include "../kernel_args.h"
#include "mma.h"

namespace gsfields::cuda::wide {

struct alignas(16) Four {
  float v[4];
};

// A float as the sum of two TF32 numbers, to 21 bits.
struct Split {
  uint32_t big, small;
};
__device__ inline Split split_tf32(float x) {
  const uint32_t big = to_tf32(x);
  return {big, to_tf32(x - from_tf32(big))};
}

// Left: 16 rows, Right: 8 columns, each by 16 contracted numbers. Steps of eight in TF32, of sixteen in bfloat16.
template <Precision P>
struct Left {
  uint32_t a[2][4];
};
template <Precision P>
struct Right {
  uint32_t b[2][2];
};
template <>
struct Left<Precision::kFp32> {
  uint32_t big[2][4], small[2][4];
};
template <>
struct Right<Precision::kFp32> {
  uint32_t big[2][2], small[2][2];
};
template <>
struct Left<Precision::kBf16> {
  uint32_t a[4];
};
template <>
struct Right<Precision::kBf16> {
  uint32_t b[2];
};

template <Precision P>
__device__ Left<P> make_left(const Four& upper, const Four& lower) {
  Left<P> left;
  if constexpr (P == Precision::kBf16) {
    left.a[0] = to_bf16x2(upper.v[0], upper.v[1]), left.a[1] = to_bf16x2(lower.v[0], lower.v[1]);
    left.a[2] = to_bf16x2(upper.v[2], upper.v[3]), left.a[3] = to_bf16x2(lower.v[2], lower.v[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x = i % 2 ? lower.v[i / 2] : upper.v[i / 2];
      if constexpr (P == Precision::kTf32) {
        left.a[i / 4][i % 4] = to_tf32(x);
      } else {
        const Split s = split_tf32(x);
        left.big[i / 4][i % 4] = s.big, left.small[i / 4][i % 4] = s.small;
      }
    }
  }
  return left;
}

template <Precision P>
__device__ Right<P> make_right(const Four& column) {
  Right<P> right;
  if constexpr (P == Precision::kBf16) {
    right.b[0] = to_bf16x2(column.v[0], column.v[1]), right.b[1] = to_bf16x2(column.v[2], column.v[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (P == Precision::kTf32) {
        right.b[i / 2][i % 2] = to_tf32(column.v[i]);
      } else {
        const Split s = split_tf32(column.v[i]);
        right.big[i / 2][i % 2] = s.big, right.small[i / 2][i % 2] = s.small;
      }
    }
  }
  return right;
}

// c += left right. In float, x y = xb yb + xb ys + xs yb up to 2^-22 of it (Markidis et al. 2018), the small ones
// first.
__device__ inline void multiply_add(float (&c)[4], const Left<Precision::kFp32>& left,
                                    const Right<Precision::kFp32>& right) {
#pragma unroll
  for (int step = 0; step < 2; ++step) mma_m16n8k8(c, left.small[step], right.big[step]);
#pragma unroll
  for (int step = 0; step < 2; ++step) mma_m16n8k8(c, left.big[step], right.small[step]);
#pragma unroll
  for (int step = 0; step < 2; ++step) mma_m16n8k8(c, left.big[step], right.big[step]);
}
__device__ inline void multiply_add(float (&c)[4], const Left<Precision::kTf32>& left,
                                    const Right<Precision::kTf32>& right) {
#pragma unroll
  for (int step = 0; step < 2; ++step) mma_m16n8k8(c, left.a[step], right.b[step]);
}
__device__ inline void multiply_add(float (&c)[4], const Left<Precision::kBf16>& left,
                                    const Right<Precision::kBf16>& right) {
  mma_m16n8k16(c, left.a, right.b);
}

// A right operand for many products, in as few registers as hold it.
template <Precision P>
struct Held {
  Right<P> right;
  __device__ void hold(const Four& column) { right = make_right<P>(column); }
  __device__ const Right<P>& get() const { return right; }
};
template <>
struct Held<Precision::kFp32> {
  Four column;
  __device__ void hold(const Four& c) { column = c; }
  __device__ Right<Precision::kFp32> get() const { return make_right<Precision::kFp32>(column); }
};

// ---- rows of channels ----------------------------------------------------------------------------------------------

// Values or an image: rows of `channels`, of which those before `end` are wanted. Four channels are read or written at
// once where that is aligned: all rows are then whole fours.
struct Rows {
  const void* data;
  math::Storage storage;
  int64_t channels;
  int end;
  bool aligned;
};

// first: the channel from which on fours are taken.
__device__ inline bool takes_fours(const void* data, int64_t bytes, int64_t channels, int64_t first) {
  return channels % 4 == 0 && first % 4 == 0 && reinterpret_cast<uintptr_t>(data) % uintptr_t(4 * bytes) == 0;
}

__device__ inline Rows make_rows(const void* data, math::Storage storage, int64_t channels, int64_t first, int end) {
  return {data, storage, channels, end, takes_fours(data, math::bytes_of(storage, 4), channels, first)};
}

template <math::Storage kStorage>
__device__ Four load_four(const void* data, int64_t at) {
  if constexpr (kStorage == math::Storage::kFull) {
    const float4 x = __ldg(reinterpret_cast<const float4*>(static_cast<const float*>(data) + at));
    return {x.x, x.y, x.z, x.w};
  } else {
    const uint2 x = __ldg(reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + at));
    const auto number = [](uint32_t bits) {
      return kStorage == math::Storage::kBfloat16 ? math::from_bfloat16(uint16_t(bits))
                                                  : math::from_float16(uint16_t(bits));
    };
    return {number(x.x), number(x.x >> 16), number(x.y), number(x.y >> 16)};
  }
}

// Fours of some rows, at channels `channel`, channel + step, ...; zeros for rows below 0 and channels not wanted.
template <int kRows, int kFours, class Load>
__device__ void load_each(const Rows& from, const int64_t (&rows)[kRows], int channel, int step,
                          Four (&fours)[kRows][kFours], const Load& load) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int first = channel + i * step;
      fours[r][i] = {};
      if (rows[r] >= 0 && first < from.end) fours[r][i] = load(rows[r] * from.channels + first, from.end - first);
    }
}

// The storage is asked for once for all, so that all loads are under way together.
template <int kRows, int kFours>
__device__ void load_fours(const Rows& from, const int64_t (&rows)[kRows], int channel, int step,
                           Four (&fours)[kRows][kFours]) {
  using math::Storage;
  if (!from.aligned)
    load_each(from, rows, channel, step, fours, [&](int64_t at, int left) {
      Four x = {};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < left) x.v[i] = math::load_as<float>(from.data, at + i, from.storage);
      return x;
    });
  else if (from.storage == Storage::kFull)
    load_each(from, rows, channel, step, fours,
              [&](int64_t at, int) { return load_four<Storage::kFull>(from.data, at); });
  else if (from.storage == Storage::kBfloat16)
    load_each(from, rows, channel, step, fours,
              [&](int64_t at, int) { return load_four<Storage::kBfloat16>(from.data, at); });
  else
    load_each(from, rows, channel, step, fours,
              [&](int64_t at, int) { return load_four<Storage::kFloat16>(from.data, at); });
}

// A tile of 16 contracted rows by 64 channels as right operands, eight columns each. Column c of operand n is channel
// 32 (n / 4) + 4 c + n % 4: so a lane reads fours, four rows of two each, and the lanes of a row read them side by
// side.
constexpr int kOperands = 8;
__device__ inline int column_channel() { return lane_id() / 4 * 4; }

__device__ inline Four column_of(const Four (&rows)[4][2], int operand) {
  Four column;
#pragma unroll
  for (int r = 0; r < 4; ++r) column.v[r] = rows[r][operand / 4].v[operand % 4];
  return column;
}

// Of the products with these operands a lane holds columns 2t and 2t + 1: fours of channels too. Four number `four`,
// of 0 to 3, begins at this channel and lies in products 4 (four / 2) to 4 (four / 2) + 3.
__device__ inline int product_channel(int four) { return four / 2 * 32 + lane_id() % 4 * 8 + four % 2 * 4; }

__device__ inline Four product_four(const float (&products)[kOperands][4], int four, int lower) {
  Four x;
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = products[four / 2 * 4 + i][2 * lower + four % 2];
  return x;
}

// Of the four channels from element `at` on, the first `left`.
__device__ inline void store_four(void* data, math::Storage storage, bool aligned, int64_t at, int left,
                                  const Four& x) {
  if (!aligned || left < 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < left) math::store_as(data, at + i, storage, x.v[i]);
  } else if (storage == math::Storage::kFull) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  } else {
    const auto pair = [&](int i) {
      if (storage == math::Storage::kBfloat16) return to_bf16x2(x.v[i], x.v[i + 1]);
      return uint32_t(math::to_float16(x.v[i])) | uint32_t(math::to_float16(x.v[i + 1])) << 16;
    };
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + at) = make_uint2(pair(0), pair(2));
  }
}

// In one transaction where the device can (sm_90).
__device__ inline void add_four(float* to, bool aligned, int left, const Four& x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (aligned && left >= 4) {
    atomicAdd(reinterpret_cast<float4*>(to), make_float4(x.v[0], x.v[1], x.v[2], x.v[3]));
    return;
  }
#else
  (void)aligned;
#endif
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) atomicAdd(to + i, x.v[i]);
}

}  // namespace gsfields::cuda::wide
