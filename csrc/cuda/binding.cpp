// The CUDA implementations of the ops, through torch's stable ABI. Schemas, fake kernels and gradients are those of the
// CPU library, which must be loaded first.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>

#include "../per_gaussian.h"
#include "device.h"
#include "kernels.h"

namespace gsfields {
namespace {

struct Cuda {
  static constexpr bool kOnHost = false;

  template <class S>
  static void project(const Projection& p, const ProjectArgs<S>& a) {
    launched(cuda::project(a, cuda::Device(p.means).stream()), "project");
  }

  static int64_t projection_parts(int64_t n) { return cuda::projection_parts(n); }

  template <class S>
  static void project_backward(const Projection& p, const ProjectBackwardArgs<S>& a, S* v_viewmats) {
    launched(cuda::project_backward(a, v_viewmats, cuda::Device(p.means).stream()), "project_backward");
  }

  template <class S>
  static void sh(const Harmonics& h, const ShArgs<S>& a) {
    launched(cuda::sh(a, cuda::Device(h.dirs).stream()), "spherical_harmonics");
  }

  template <class S>
  static void sh_backward(const Harmonics& h, const ShArgs<S>& a) {
    launched(cuda::sh_backward(a, cuda::Device(h.dirs).stream()), "spherical_harmonics_backward");
  }

 private:
  static void launched(cudaError_t error, const char* op) {
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("the CUDA kernel of ") + op +
                               " could not be launched: " + cudaGetErrorString(error));
  }
};

}  // namespace
}  // namespace gsfields

STABLE_TORCH_LIBRARY_IMPL(gsfields, CUDA, m) {
  m.impl("project", TORCH_BOX(&gsfields::project<gsfields::Cuda>));
  m.impl("project_backward", TORCH_BOX(&gsfields::project_backward<gsfields::Cuda>));
  m.impl("spherical_harmonics", TORCH_BOX(&gsfields::spherical_harmonics<gsfields::Cuda>));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&gsfields::spherical_harmonics_backward<gsfields::Cuda>));
}
