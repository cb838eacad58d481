// The CUDA kernels as seen from outside: each function launches on the stream and returns the launch's error. Free of
// torch; S is float or double; pointers are to memory of the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "../kernel_args.h"

namespace gsfields::cuda {

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

}  // namespace gsfields::cuda
