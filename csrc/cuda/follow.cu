// Fast rows of a table beside their slow copies, which catch up first, on the GPU: a warp has a row.
#include "kernels.h"

#include "launch.h"
#include "tunables.h"
#include "warp.h"

namespace gsfields::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(kFollowBlock) follow_kernel(const FollowArgs<S> a, int64_t rows) {
  const int64_t i = (int64_t(blockIdx.x) * kFollowBlock + threadIdx.x) / kWarp;
  if (i >= rows) return;
  S* const out = a.both + 2 * i * a.dim;
  const int64_t row = a.rows[i];
  const bool known = row >= 0 && row < a.n;  // the CPU refuses others
  const int32_t missed = known ? a.follows - a.followed[row] : 0;
  __syncwarp();  // all have read it
  if (known && lane_id() == 0) a.followed[row] = a.follows;
  const S left = math::power(a.momentum, missed);
  for (int64_t k = lane_id(); k < a.dim; k += kWarp) {
    S fast = 0, slow = 0;
    if (known) fast = a.fast[row * a.dim + k], slow = a.slow[row * a.dim + k];
    if (missed > 0) a.slow[row * a.dim + k] = slow = fast + left * (slow - fast);
    out[k] = fast, out[a.dim + k] = slow;
  }
}

}  // namespace

template <class S>
cudaError_t follow_rows(const FollowArgs<S>& a, int64_t rows, cudaStream_t stream) {
  return GSF_LAUNCH(follow_kernel, blocks_for(rows, kFollowBlock / kWarp), kFollowBlock, stream, a, rows);
}

template cudaError_t follow_rows(const FollowArgs<float>&, int64_t, cudaStream_t);
template cudaError_t follow_rows(const FollowArgs<double>&, int64_t, cudaStream_t);

}  // namespace gsfields::cuda
