// Both products of csrc/cuda/mma.h, for nvcc.
#include "cuda/mma.h"

using namespace gsfields::cuda;

__global__ void tf32_kernel(const float* a, const float* b, float* c) {
  const int lane = lane_id();
  uint32_t left[4], right[2];
  float sum[4] = {};
  for (int i = 0; i < 4; ++i) left[i] = to_tf32(a[4 * lane + i]);
  for (int i = 0; i < 2; ++i) right[i] = to_tf32(b[2 * lane + i]);
  mma_m16n8k8(sum, left, right);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sum[i];
}

__global__ void bf16_kernel(const float* a, const float* b, float* c) {
  const int lane = lane_id();
  uint32_t left[4], right[2];
  float sum[4] = {};
  for (int i = 0; i < 4; ++i) left[i] = to_bf16x2(a[8 * lane + 2 * i], a[8 * lane + 2 * i + 1]);
  for (int i = 0; i < 2; ++i) right[i] = to_bf16x2(b[4 * lane + 2 * i], b[4 * lane + 2 * i + 1]);
  mma_m16n8k16(sum, left, right);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sum[i];
}
