// A step of Adam on some rows of a table (Kingma & Ba 2015, algorithm 1), on the GPU: a warp has a row.
#include "kernels.h"

#include "launch.h"
#include "tunables.h"
#include "warp.h"

namespace gsfields::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(kAdamBlock, kWarpPerRowBlocks) adam_kernel(const AdamArgs<S> a, int64_t rows) {
  const int64_t i = (int64_t(blockIdx.x) * kAdamBlock + threadIdx.x) / kWarp;
  if (i >= rows || a.rows[i] < 0 || a.rows[i] >= a.n) return;  // the CPU refuses such rows
  const int lane = lane_id();
  S* const powers = a.powers + 2 * a.rows[i];
  const S power1 = powers[0] * a.beta1, power2 = powers[1] * a.beta2;
  __syncwarp();  // all have read them
  if (lane == 0) powers[0] = power1, powers[1] = power2;
  const S step = a.rate / (1 - power1), inv_root = 1 / math::sqrt(1 - power2);
  for (int64_t k = lane; k < a.dim; k += kWarp) {
    const int64_t at = a.rows[i] * a.dim + k;
    const S grad = a.grads[i * a.dim + k];
    const S first = a.first[at] * a.beta1 + grad * (1 - a.beta1);
    const S second = a.second[at] * a.beta2 + grad * grad * (1 - a.beta2);
    a.first[at] = first, a.second[at] = second;
    a.table[at] -= step * first / (math::sqrt(second) * inv_root + a.eps);
  }
}

}  // namespace

template <class S>
cudaError_t adam_rows(const AdamArgs<S>& a, int64_t rows, cudaStream_t stream) {
  return GSF_LAUNCH(adam_kernel, blocks_for(rows, kAdamBlock / kWarp), kAdamBlock, stream, a, rows);
}

template cudaError_t adam_rows(const AdamArgs<float>&, int64_t, cudaStream_t);
template cudaError_t adam_rows(const AdamArgs<double>&, int64_t, cudaStream_t);

}  // namespace gsfields::cuda
