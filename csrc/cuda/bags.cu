// Sums of bags of rows, on the GPU: a warp has a bag, and a lane every 32nd channel of it.
#include "kernels.h"

#include "launch.h"
#include "tunables.h"
#include "warp.h"

namespace gsfields::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(kBagBlock) bags_kernel(const BagArgs<S> a, int64_t bags) {
  const int64_t b = (int64_t(blockIdx.x) * kBagBlock + threadIdx.x) / kWarp;
  if (b >= bags) return;
  const int64_t bag = a.bags[b], first = bag ? a.ends[bag - 1] : 0, last = a.ends[bag];
  for (int64_t c = lane_id(); c < a.dim; c += kWarp) {
    S sum = 0;
    for (int64_t k = first; k < last; ++k) {
      const int32_t member = a.members[k], row = a.place ? a.place[member] : member;
      if (row >= 0) sum += a.shares[k] * a.values[row * a.dim + c];
    }
    a.sums[b * a.dim + c] = sum;
  }
}

}  // namespace

template <class S>
cudaError_t sum_bags(const BagArgs<S>& a, int64_t bags, cudaStream_t stream) {
  return GSF_LAUNCH(bags_kernel, blocks_for(bags, kBagBlock / kWarp), kBagBlock, stream, a, bags);
}

template cudaError_t sum_bags(const BagArgs<float>&, int64_t, cudaStream_t);
template cudaError_t sum_bags(const BagArgs<double>&, int64_t, cudaStream_t);

}  // namespace gsfields::cuda
