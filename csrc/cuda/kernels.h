// The CUDA kernels as seen from outside: each function launches on the stream and returns the launch's error. Free of
// torch; S is float or double; pointers are to memory of the current device.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "../kernel_args.h"

namespace gsfields::cuda {

// Memory of the current device for as long as a stage runs on its stream: allocate(bytes), aligned to 256.
using Allocate = std::function<void*(int64_t bytes)>;

template <class T>
T* allocate_array(const Allocate& allocate, int64_t count) {
  return static_cast<T*>(allocate(count * int64_t(sizeof(T))));
}

template <class T>
cudaError_t zero(T* array, int64_t count, cudaStream_t stream) {
  return cudaMemsetAsync(array, 0, size_t(count) * sizeof(T), stream);
}

// A view whose camera math::usable_camera() refuses sees nothing.
template <class S>
cudaError_t project(const ProjectArgs<S>& a, cudaStream_t stream);

// How many parts a.v_views of project_backward() holds for n Gaussians.
int64_t projection_parts(int64_t n);

// v_viewmats: [B,4,4]. Bit-identical over runs.
template <class S>
cudaError_t project_backward(const ProjectBackwardArgs<S>& a, S* v_viewmats, cudaStream_t stream);

template <class S>
cudaError_t sh(const ShArgs<S>& a, cudaStream_t stream);

template <class S>
cudaError_t sh_backward(const ShArgs<S>& a, cudaStream_t stream);

template <class S>
cudaError_t respond(const RespondArgs<S>& a, cudaStream_t stream);

// How many parts a.v_codes of respond_backward() holds for n Gaussians.
int64_t response_parts(int64_t n);

// v_code: [rank], or null where a.v_codes is. Bit-identical over runs.
template <class S>
cudaError_t respond_backward(const RespondBackwardArgs<S>& a, S* v_code, cudaStream_t stream);

// tile_offsets: [B·tiles + 1]. make_ids(pairs) gives the memory of the list once its length is known, for which the
// host waits once. cudaErrorInvalidValue where splats, tiles or pairs are 2^32 or more.
template <class S>
cudaError_t bin(const BinInput<S>& in, int64_t* tile_offsets, const std::function<int32_t*(int64_t pairs)>& make_ids,
                const Allocate& allocate, cudaStream_t stream);

// image: rows of [C] in the input's storage; transmittance: rows; last: rows, for each pixel how much of its tile's
// list lies before the end of what it blended.
template <class S>
cudaError_t blend(const BlendInput<S>& in, void* image, S* transmittance, int32_t* last, const Allocate& allocate,
                  cudaStream_t stream);

// Unless grads.deterministic, sums over pixels and tiles are atomic: their order, and so the last bits, vary from run
// to run.
template <class S>
cudaError_t blend_backward(const BlendInput<S>& in, const S* transmittance, const int32_t* last,
                           const BlendGrads<S>& grads, const Allocate& allocate, cudaStream_t stream);

// The same holds for a.deterministic.
template <class S>
cudaError_t lift(const BlendInput<S>& in, const LiftArgs<S>& a, const Allocate& allocate, cudaStream_t stream);

// Which of the pairs of the lists sampled pixels see: those they blend, and those at which they stop. seen: [pairs].
template <class S>
cudaError_t seen_pairs(const BlendInput<S>& in, bool* seen, cudaStream_t stream);

// a.image1 and the rest: [images,H,W,C].
template <class S>
cudaError_t ssim(const SsimArgs<S>& a, int64_t images, bool backward, cudaStream_t stream);

// Losses and logsums, or the gradients; bit-identical over runs.
template <class S>
cudaError_t contrast(const ContrastArgs<S>& a, bool backward, cudaStream_t stream);

template <class S>
cudaError_t adam_rows(const AdamArgs<S>& a, int64_t rows, cudaStream_t stream);

template <class S>
cudaError_t follow_rows(const FollowArgs<S>& a, int64_t rows, cudaStream_t stream);

template <class S>
cudaError_t sum_bags(const BagArgs<S>& a, int64_t bags, cudaStream_t stream);

}  // namespace gsfields::cuda
