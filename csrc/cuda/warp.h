// What the threads of a warp do together, and single instructions that C++ has no name for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gsfields::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

__device__ inline int lane_id() { return int(threadIdx.x) % kWarp; }

// 2^-x with a relative error of at most 2^-22, and e^-x.
__device__ inline float falloff(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(-x));
  return y;
#else
  return emulator::ex2_approx(-x);
#endif
}
__device__ inline double falloff(double x) { return ::exp(-x); }

// 1/x to 2 units in the last place.
__device__ inline float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ inline double reciprocal(double x) { return 1 / x; }

// Which of K sums ends up in which lane after reduce_scatter(): a number below K, or -1 where a lane gets none. Each
// sum lands in exactly one lane.
template <int K>
__device__ int scattered_index(int lane) {
  static_assert(K >= 1 && K <= kWarp);
  int first = 0, held = K;  // this lane still holds partial sums [first, first + held)
  bool mine = true;
#pragma unroll
  for (int offset = kWarp / 2, n = K; offset > 0; offset /= 2) {
    const bool upper = lane & offset;
    const int half = (n + 1) / 2;
    if (n == 1)
      mine = mine && !upper;
    else if (upper)
      first += half, held -= half;
    else
      held = held < half ? held : half;
    n = half;
  }
  return mine && held > 0 ? first : -1;
}

// A step of reduce_scatter(): lanes that differ in one bit split the kHeld sums that both hold between them.
template <int kHeld, int kOffset, class S>
__device__ void halve(S* values, int lane) {
  const bool upper = lane & kOffset;
  constexpr int kHalf = (kHeld + 1) / 2;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const S high = i + kHalf < kHeld ? values[i + kHalf] : S(0);
    const S received = __shfl_xor_sync(kFullWarp, upper || kHeld == 1 ? values[i] : high, kOffset);
    values[i] = (upper && kHeld > 1 ? high : values[i]) + received;
  }
  if constexpr (kOffset > 1) halve<kHalf, kOffset / 2>(values, lane);
}

// Sums K values over the warp; each lane receives the sum that scattered_index<K>() tells. In each of five steps two
// lanes split the sums that both hold between them: about K exchanges, where summing one value after the other takes
// 5K.
template <int K, class S>
__device__ S reduce_scatter(S (&values)[K]) {
#if defined(GSF_EMULATOR) && !defined(GSF_EMULATE_SHUFFLES)
  // One meeting of the lanes instead of K.
  struct Lane {
    const S* values;
    S sum;
  } mine{values, 0};
  emulator::collective(&mine, [](void* const* lanes) {
    for (int l = 0; l < kWarp; ++l) {
      const int k = scattered_index<K>(l);
      for (int from = 0; from < kWarp && k >= 0; ++from)
        static_cast<Lane*>(lanes[l])->sum += static_cast<const Lane*>(lanes[from])->values[k];
    }
  });
  return mine.sum;
#else
  halve<K, kWarp / 2>(values, lane_id());
  return values[0];
#endif
}

// The largest value over the warp.
__device__ inline int warp_max(int value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const int other = __shfl_xor_sync(kFullWarp, value, offset);
    value = value > other ? value : other;
  }
  return value;
}

}  // namespace gsfields::cuda
