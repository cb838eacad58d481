// What every tile would otherwise compute again for each Gaussian that it lists. A thread takes one Gaussian.
#include "kernels.h"

#include "tile.h"

namespace gsfields::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(kPackBlock) pack_kernel(const BlendInput<S> in, Packed<S>* packed) {
  const int64_t i = int64_t(blockIdx.x) * kPackBlock + threadIdx.x;
  if (i >= in.views * in.n) return;
  const S *conic = in.conics + 3 * i, opacity = in.opacities[i];
  packed[i].reach = kNowhere<S>;
  if (opacity == 0) return;  // culled, as most may be
  packed[i].splat = math::make_pixel_splat<S>(in.means2d[2 * i], in.means2d[2 * i + 1], conic, opacity);
  packed[i].reach = math::make_reach(conic, opacity);
}

}  // namespace

template <class S>
cudaError_t pack(const BlendInput<S>& in, Packed<S>* packed, cudaStream_t stream) {
  return GSF_LAUNCH(pack_kernel, blocks_for(in.views * in.n, kPackBlock), kPackBlock, stream, in, packed);
}

template cudaError_t pack(const BlendInput<float>&, Packed<float>*, cudaStream_t);
template cudaError_t pack(const BlendInput<double>&, Packed<double>*, cudaStream_t);

}  // namespace gsfields::cuda
