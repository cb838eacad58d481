// Which pairs of the lists sampled pixels see, on the GPU: a warp has a pixel, and each of its lanes one Gaussian
// of 32. The maths and its order are those of step_into() in walk.h, so that both stop at the same Gaussian.
#include "kernels.h"

#include "tile.h"

namespace gsfields::cuda {
namespace {

// Marks what other warps may mark at the same time.
__device__ void mark(bool* seen) {
#if defined(__CUDACC__)
  *static_cast<volatile bool*>(seen) = true;  // to PTX a relaxed store, which may race
#else
  emulator::atomic_update(seen, [](bool) { return true; });
#endif
}

template <class S>
__global__ void __launch_bounds__(kSeenBlock) seen_kernel(const BlendInput<S> in, bool* seen) {
  const int64_t row = (int64_t(blockIdx.x) * kSeenBlock + threadIdx.x) / kWarp;
  if (row >= in.rows) return;
  // The nearest pixel that there is, if the list is wrong.
  const int64_t pixels = in.views * in.height * in.width;
  const int64_t pixel = math::max<int64_t>(math::min(in.pixels[row], pixels - 1), 0);
  const Tile tile = locate(in, unsigned(tile_of_pixel(pixel, in.width, in.height)));
  const S x = S(pixel % in.width) + S(0.5), y = S(pixel / in.width % in.height) + S(0.5);
  S T = 1;
  for (int first = 0; first < tile.listed; first += kWarp) {
    const int k = first + lane_id();
    const int32_t id = k < tile.listed ? in.ids[tile.begin + k] : -1;
    S alpha = 0;
    if (id >= 0 && id < in.n) {
      const int64_t at = tile.view * in.n + id;
      const auto splat =
          math::make_pixel_splat<S>(in.means2d[2 * at], in.means2d[2 * at + 1], in.conics + 3 * at, in.opacities[at]);
      const S scaled = math::scaled_exponent(splat, x - splat.x, y - splat.y);
      alpha = math::pair_alpha(splat, scaled, falloff(scaled));
    }
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, alpha > 0); left; left &= left - 1) {
      const int lane = __ffs(int(left)) - 1;
      if (lane_id() == lane) mark(seen + tile.begin + k);
      T *= 1 - __shfl_sync(kFullWarp, alpha, lane);
      if (T <= S(math::kTransmittanceMin)) return;
    }
  }
}

}  // namespace

template <class S>
cudaError_t seen_pairs(const BlendInput<S>& in, bool* seen, cudaStream_t stream) {
  GSF_STEP(zero(seen, in.pairs, stream));
  return GSF_LAUNCH(seen_kernel<S>, blocks_for(in.rows, kSeenBlock / kWarp), kSeenBlock, stream, in, seen);
}

template cudaError_t seen_pairs(const BlendInput<float>&, bool*, cudaStream_t);
template cudaError_t seen_pairs(const BlendInput<double>&, bool*, cudaStream_t);

}  // namespace gsfields::cuda
