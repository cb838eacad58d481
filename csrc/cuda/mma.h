// Products of small matrices by a warp, on tensor cores: D = A B + C, A of 16 rows, B of 8 columns, C and D [16,8].
//
// The matrices lie scattered over the lanes (PTX ISA, "Matrix Fragments for mma"). With g = lane / 4 and t = lane % 4:
//
//   c[0], c[1]   rows g,      columns 2t, 2t + 1      of C and D, float
//   c[2], c[3]   rows g + 8,  columns 2t, 2t + 1
//
// mma_m16n8k8, A [16,8] and B [8,8] in TF32 (made by to_tf32()):
//   a[0]  row g, column t          a[2]  row g, column t + 4         b[0]  row t, column g
//   a[1]  row g + 8, column t      a[3]  row g + 8, column t + 4     b[1]  row t + 4, column g
//
// mma_m16n8k16, A [16,16] and B [16,8] in bfloat16, two to a register (made by to_bf16x2()), the first in the lower
// half:
//   a[0]  row g, columns 2t, 2t + 1        a[2]  row g, columns 2t + 8, 2t + 9
//   a[1]  row g + 8, columns 2t, 2t + 1    a[3]  row g + 8, columns 2t + 8, 2t + 9
//   b[0]  rows 2t, 2t + 1, column g        b[1]  rows 2t + 8, 2t + 9, column g
//
// All lanes of the warp call together. Products are exact and sums are rounded to float, by tensor cores in an order
// and to a precision of their own. Where there are no such tensor cores (before sm_80), the lanes exchange A and B by
// shuffles and multiply in float, which is slow.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "warp.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define GSF_TENSOR_CORES 1
#else
#define GSF_TENSOR_CORES 0
#endif

namespace gsfields::cuda {

// Rounds to the ten bits after the point that TF32 has; halves away from zero.
__device__ inline uint32_t to_tf32(float x) {
#if GSF_TENSOR_CORES
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
#else
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
}

// Rounds to the seven bits after the point that bfloat16 has; halves to even.
__device__ inline uint32_t to_bf16x2(float low, float high) {
#if GSF_TENSOR_CORES
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#else
  uint32_t halves[2] = {__float_as_uint(low), __float_as_uint(high)};
  for (uint32_t& bits : halves) {
    const bool number = (bits & 0x7fffffffu) <= 0x7f800000u;
    bits = number ? (bits + 0x7fffu + (bits >> 16 & 1)) >> 16 : 0x7fffu;
  }
  return halves[0] | halves[1] << 16;
#endif
}

__device__ inline float from_tf32(uint32_t x) { return __uint_as_float(x & 0xffffe000u); }
__device__ inline float from_bf16_low(uint32_t x) { return __uint_as_float(x << 16); }
__device__ inline float from_bf16_high(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }

#if !GSF_TENSOR_CORES
namespace mma {

// Adds the products of one register of A and of B to c. dot(a, b) multiplies what they hold.
template <class Dot>
__device__ void add_products(float (&c)[4], uint32_t a_upper, uint32_t a_lower, uint32_t b_left, uint32_t b_right,
                             const Dot& dot) {
  c[0] += dot(a_upper, b_left), c[1] += dot(a_upper, b_right);
  c[2] += dot(a_lower, b_left), c[3] += dot(a_lower, b_right);
}

// The rows g and g + 8 of A are held by the lanes 4g to 4g + 3, the columns 2t and 2t + 1 of B by 8t to 8t + 3 and
// 8t + 4 to 8t + 7.
template <class Dot>
__device__ void product(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Dot& dot) {
#if defined(GSF_EMULATOR) && !defined(GSF_EMULATE_SHUFFLES)
  struct Lane {
    const uint32_t *a, *b;
    float* c;
  } mine{a, b, c};
  // One meeting of the lanes instead of 32.
  emulator::collective(&mine, [&dot](void* const* lanes) {
    const auto lane = [&](int l) -> const Lane& { return *static_cast<const Lane*>(lanes[l]); };
    for (int l = 0; l < kWarp; ++l)
      for (int k = 0; k < 8; ++k) {
        const Lane &row = lane(l / 4 * 4 + k % 4), &left = lane(l % 4 * 8 + k % 4),
                   &right = lane(l % 4 * 8 + 4 + k % 4);
        auto& to = *reinterpret_cast<float (*)[4]>(lane(l).c);
        add_products(to, row.a[k / 4 * 2], row.a[k / 4 * 2 + 1], left.b[k / 4], right.b[k / 4], dot);
      }
  });
#else
  const int row = lane_id() / 4 * 4, column = lane_id() % 4 * 8;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const uint32_t upper = __shfl_sync(kFullWarp, a[k / 4 * 2], row + k % 4);
    const uint32_t lower = __shfl_sync(kFullWarp, a[k / 4 * 2 + 1], row + k % 4);
    const uint32_t left = __shfl_sync(kFullWarp, b[k / 4], column + k % 4);
    const uint32_t right = __shfl_sync(kFullWarp, b[k / 4], column + 4 + k % 4);
    add_products(c, upper, lower, left, right, dot);
  }
#endif
}

}  // namespace mma
#endif

// c += a b.
__device__ inline void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if GSF_TENSOR_CORES
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma::product(c, a, b, [](uint32_t x, uint32_t y) { return from_tf32(x) * from_tf32(y); });
#endif
}

__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if GSF_TENSOR_CORES
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma::product(c, a, b, [](uint32_t x, uint32_t y) {
    return from_bf16_low(x) * from_bf16_low(y) + from_bf16_high(x) * from_bf16_high(y);
  });
#endif
}

}  // namespace gsfields::cuda

#undef GSF_TENSOR_CORES
