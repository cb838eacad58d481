// The CUDA implementations of the ops, through torch's stable ABI. Schemas, fake kernels and gradients are those of the
// CPU library, which must be loaded first.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../per_gaussian.h"
#include "../per_pair.h"
#include "../per_pixel.h"
#include "../per_row.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"

namespace gsfields {
namespace {

// Tensors that live until the work of an op is on the stream: torch's allocator hands their memory on in the order of
// the stream.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}
  operator cuda::Allocate() {
    return [this](int64_t bytes) {
      tensors_.push_back(make(like_, {bytes}, ScalarType::Byte));
      return tensors_.back().mutable_data_ptr();
    };
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> tensors_;
};

struct Cuda {
  static constexpr bool kOnHost = false;

  template <class S>
  static void project(const Projection& p, const ProjectArgs<S>& a) {
    run("project", p.means, [&](cudaStream_t stream) { return cuda::project(a, stream); });
  }

  static int64_t projection_parts(int64_t n) { return cuda::projection_parts(n); }

  template <class S>
  static void project_backward(const Projection& p, const ProjectBackwardArgs<S>& a, S* v_viewmats) {
    run("project_backward", p.means,
        [&](cudaStream_t stream) { return cuda::project_backward(a, v_viewmats, stream); });
  }

  template <class S>
  static void sh(const Harmonics& h, const ShArgs<S>& a) {
    run("spherical_harmonics", h.dirs, [&](cudaStream_t stream) { return cuda::sh(a, stream); });
  }

  template <class S>
  static void sh_backward(const Harmonics& h, const ShArgs<S>& a) {
    run("spherical_harmonics_backward", h.dirs, [&](cudaStream_t stream) { return cuda::sh_backward(a, stream); });
  }

  template <class S>
  static void respond(const Motion& m, const RespondArgs<S>& a) {
    run("respond", m.code, [&](cudaStream_t stream) { return cuda::respond(a, stream); });
  }

  static int64_t response_parts(int64_t n) { return cuda::response_parts(n); }

  template <class S>
  static void respond_backward(const Motion& m, const RespondBackwardArgs<S>& a, S* v_code) {
    run("respond_backward", m.code, [&](cudaStream_t stream) { return cuda::respond_backward(a, v_code, stream); });
  }

  template <class S, class MakeIds>
  static void bin(const Tensor& like, const BinInput<S>& in, int64_t* tile_offsets, const MakeIds& make_ids) {
    Scratch scratch(like);
    run("bin_tiles", like, [&](cudaStream_t stream) {
      const cudaError_t error = cuda::bin(in, tile_offsets, make_ids, scratch, stream);
      check(error != cudaErrorInvalidValue, "means2d makes 2^32 or more splats, tiles or pairs of these over ",
            in.views, " views, but bin_tiles lists fewer on CUDA");
      return error;
    });
  }

  template <class S>
  static void blend(const Splats& s, const BlendInput<S>& in, void* image, S* transmittance, int32_t* last) {
    Scratch scratch(s.means2d);
    run("blend", s.means2d,
        [&](cudaStream_t stream) { return cuda::blend(in, image, transmittance, last, scratch, stream); });
  }

  template <class S>
  static void blend_backward(const Splats& s, const BlendInput<S>& in, const S* transmittance, const int32_t* last,
                             const BlendGrads<S>& grads) {
    Scratch scratch(s.means2d);
    run("blend_backward", s.means2d,
        [&](cudaStream_t stream) { return cuda::blend_backward(in, transmittance, last, grads, scratch, stream); });
  }

  template <class S>
  static void lift(const Splats& s, const BlendInput<S>& in, const LiftArgs<S>& a) {
    Scratch scratch(s.means2d);
    run("lift", s.means2d, [&](cudaStream_t stream) { return cuda::lift(in, a, scratch, stream); });
  }

  template <class S>
  static void seen_pairs(const Splats& s, const BlendInput<S>& in, bool* seen) {
    run("seen_pairs", s.means2d, [&](cudaStream_t stream) { return cuda::seen_pairs(in, seen, stream); });
  }

  template <class S>
  static void ssim(const Ssim& p, const SsimArgs<S>& a, int64_t images, bool backward) {
    run(backward ? "ssim_backward" : "ssim", p.image1,
        [&](cudaStream_t stream) { return cuda::ssim(a, images, backward, stream); });
  }

  template <class S>
  static void contrast(const Contrast& c, const ContrastArgs<S>& a, bool backward) {
    run(backward ? "contrast_backward" : "contrast", c.features,
        [&](cudaStream_t stream) { return cuda::contrast(a, backward, stream); });
  }

  template <class S>
  static void adam_rows(const Tensor& table, const AdamArgs<S>& a, int64_t rows) {
    run("adam_rows", table, [&](cudaStream_t stream) { return cuda::adam_rows(a, rows, stream); });
  }

  template <class S>
  static void follow_rows(const Tensor& fast, const FollowArgs<S>& a, int64_t rows) {
    run("follow_rows", fast, [&](cudaStream_t stream) { return cuda::follow_rows(a, rows, stream); });
  }

  template <class S>
  static void sum_bags(const Tensor& values, const BagArgs<S>& a, int64_t bags) {
    run("sum_bags", values, [&](cudaStream_t stream) { return cuda::sum_bags(a, bags, stream); });
  }

 private:
  template <class F>
  static void run(const char* op, const Tensor& on, const F& launch) {
    const cuda::Device device(on);
    GSF_RANGE(op);
    if (const cudaError_t error = launch(device.stream()); error != cudaSuccess)
      throw std::runtime_error(std::string("the CUDA kernels of ") + op +
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
  m.impl("respond", TORCH_BOX(&gsfields::respond<gsfields::Cuda>));
  m.impl("respond_backward", TORCH_BOX(&gsfields::respond_backward<gsfields::Cuda>));
  m.impl("bin_tiles", TORCH_BOX(&gsfields::bin_tiles<gsfields::Cuda>));
  m.impl("blend", TORCH_BOX(&gsfields::blend<gsfields::Cuda>));
  m.impl("blend_backward", TORCH_BOX(&gsfields::blend_backward<gsfields::Cuda>));
  m.impl("lift", TORCH_BOX(&gsfields::lift<gsfields::Cuda>));
  m.impl("seen_pairs", TORCH_BOX(&gsfields::seen_pairs<gsfields::Cuda>));
  m.impl("ssim", TORCH_BOX(&gsfields::ssim<gsfields::Cuda>));
  m.impl("ssim_backward", TORCH_BOX(&gsfields::ssim_backward<gsfields::Cuda>));
  m.impl("contrast", TORCH_BOX(&gsfields::contrast<gsfields::Cuda>));
  m.impl("contrast_backward", TORCH_BOX(&gsfields::contrast_backward<gsfields::Cuda>));
  m.impl("adam_rows", TORCH_BOX(&gsfields::adam_rows<gsfields::Cuda>));
  m.impl("follow_rows", TORCH_BOX(&gsfields::follow_rows<gsfields::Cuda>));
  m.impl("sum_bags", TORCH_BOX(&gsfields::sum_bags<gsfields::Cuda>));
}
