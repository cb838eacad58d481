// The ops of gsfields: schemas, argument checks and the CPU implementations, through torch's stable ABI.
// Autograd and fake kernels are registered in gsfields/ops.
#include <torch/csrc/stable/library.h>

#include "cpu/stages.h"
#include "per_gaussian.h"
#include "per_pair.h"
#include "per_pixel.h"
#include "per_row.h"

namespace gsfields {

namespace {

cpu::Threads torch_threads() {
  const int count = int(torch::stable::get_num_threads());
  return {count, [count](const std::function<void(int)>& f) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) f(int(i));
            });
          }};
}

// ---- the CPU -------------------------------------------------------------------------------------------------------

struct Cpu {
  static constexpr bool kOnHost = true;

  template <class S>
  static void project(const Projection& p, const ProjectArgs<S>& a) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), p.n, cpu::kProjectChunk,
                         [&](int64_t begin, int64_t end) { kernel.project(a, begin, end); });
  }

  static int64_t projection_parts(int64_t n) { return (n + cpu::kProjectChunk - 1) / cpu::kProjectChunk; }

  template <class S>
  static void project_backward(const Projection& p, const ProjectBackwardArgs<S>& a, S* v_viewmats) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), p.n, cpu::kProjectChunk,
                         [&](int64_t begin, int64_t end) { kernel.project_backward(a, begin, end); });
    if (!v_viewmats) return;
    for (int64_t i = 0; i < p.views * 16; ++i) v_viewmats[i] = 0;
    for (int64_t part = 0; part < projection_parts(p.n); ++part)
      for (int64_t b = 0; b < p.views; ++b) {
        const S* sum = a.v_views + (part * p.views + b) * 12;
        S* v = v_viewmats + 16 * b;
        for (int i = 0; i < 3; ++i) {
          for (int j = 0; j < 3; ++j) v[4 * i + j] += sum[3 * i + j];
          v[4 * i + 3] += sum[9 + i];
        }
      }
  }

  template <class S>
  static void sh(const Harmonics& h, const ShArgs<S>& a) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), h.n, 256, [&](int64_t begin, int64_t end) { kernel.sh(a, begin, end); });
  }

  template <class S>
  static void sh_backward(const Harmonics& h, const ShArgs<S>& a) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), h.n, 256,
                         [&](int64_t begin, int64_t end) { kernel.sh_backward(a, begin, end); });
  }

  template <class S>
  static void respond(const Motion& m, const RespondArgs<S>& a) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_pieces(torch_threads(), m.n, cpu::kRespondChunk,
                         [&](int64_t begin, int64_t end) { kernel.respond(a, begin, end); });
  }

  static int64_t response_parts(int64_t n) { return (n + cpu::kRespondChunk - 1) / cpu::kRespondChunk; }

  template <class S>
  static void respond_backward(const Motion& m, const RespondBackwardArgs<S>& a, S* v_code) {
    const auto& kernel = cpu::kernels().of<S>();
    if (a.v_response) cpu::prefer_large_pages(a.v_response, m.n * math::kResponses * m.rank * int64_t(sizeof(S)));
    cpu::parallel_pieces(torch_threads(), m.n, cpu::kRespondChunk,
                         [&](int64_t begin, int64_t end) { kernel.respond_backward(a, begin, end); });
    if (!v_code) return;
    for (int64_t d = 0; d < m.rank; ++d) v_code[d] = 0;
    for (int64_t part = 0; part < response_parts(m.n); ++part)
      for (int64_t d = 0; d < m.rank; ++d) v_code[d] += a.v_codes[part * m.rank + d];
  }

  template <class S, class MakeIds>
  static void bin(const Tensor&, const BinInput<S>& in, int64_t* tile_offsets, const MakeIds& make_ids) {
    const cpu::Threads threads = torch_threads();
    cpu::Binning<S> binning(in, tile_offsets, threads);
    binning.fill(make_ids(binning.total()));
  }

  template <class S>
  static void blend(const Splats&, const BlendInput<S>& in, void* image, S* transmittance, int32_t* last) {
    cpu::blend(in, image, transmittance, last, torch_threads());
  }

  // Marches again instead of walking back from the final transmittance. The order of sums is always the same.
  template <class S>
  static void blend_backward(const Splats& s, const BlendInput<S>& in, const S* /*transmittance*/, const int32_t* last,
                             const BlendGrads<S>& grads) {
    const std::vector<int32_t> used = cpu::used_lists(in, last);
    for (int64_t t = 0; t < s.views * s.tiles; ++t) {
      const int64_t listed = in.tile_offsets[t + 1] - in.tile_offsets[t];
      check(used[size_t(t)] >= 0 && used[size_t(t)] <= listed, "last holds ", used[size_t(t)], " in tile ", t,
            ", but the tile lists ", listed, " Gaussians");
    }
    cpu::blend_backward(in, used.data(), grads, torch_threads());
  }

  template <class S>
  static void lift(const Splats&, const BlendInput<S>& in, const LiftArgs<S>& a) {
    cpu::lift(in, a, torch_threads());
  }

  template <class S>
  static void seen_pairs(const Splats&, const BlendInput<S>& in, bool* seen) {
    cpu::seen_pairs(in, seen, torch_threads());
  }

  template <class S>
  static void ssim(const Ssim&, const SsimArgs<S>& a, int64_t images, bool backward) {
    cpu::ssim(a, images, backward, torch_threads());
  }

  template <class S>
  static void adam_rows(const Tensor&, const AdamArgs<S>& a, int64_t rows) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), rows, 512,
                         [&](int64_t begin, int64_t end) { kernel.adam_rows(a, begin, end); });
  }

  template <class S>
  static void follow_rows(const Tensor&, const FollowArgs<S>& a, int64_t rows) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::parallel_ranges(torch_threads(), rows, 512,
                         [&](int64_t begin, int64_t end) { kernel.follow_rows(a, begin, end); });
  }

  template <class S>
  static void sum_bags(const Tensor&, const BagArgs<S>& a, int64_t bags) {
    const auto& kernel = cpu::kernels().of<S>();
    cpu::prefer_large_pages(a.sums, bags * a.dim * int64_t(sizeof(S)));
    cpu::parallel_pieces(torch_threads(), bags, 512,
                         [&](int64_t begin, int64_t end) { kernel.sum_bags(a, begin, end); });
  }

  template <class S>
  static void contrast(const Contrast&, const ContrastArgs<S>& a, bool backward) {
    cpu::contrast(a, backward, torch_threads());
  }
};

// ---- instruction sets ----------------------------------------------------------------------------------------------

int64_t cpu_isa() { return int64_t(cpu::current_isa()); }

bool cpu_isa_available(int64_t isa) { return isa >= 0 && isa <= 2 && cpu::isa_available(cpu::Isa(isa)); }

void set_cpu_isa(int64_t isa) {
  check(cpu_isa_available(isa), "isa is ", isa, ", but must be an instruction set that this CPU has");
  cpu::set_isa(cpu::Isa(isa));
}

}  // namespace
}  // namespace gsfields

STABLE_TORCH_LIBRARY(gsfields, m) {
  m.def(
      "project(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor viewmats, Tensor Ks, int width, "
      "int height, float near, float far, float eps2d, bool antialiased) -> "
      "(Tensor means2d, Tensor depths, Tensor conics, Tensor opacities2d, Tensor radii)");
  m.def(
      "project_backward(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor viewmats, Tensor Ks, "
      "Tensor radii, Tensor v_means2d, Tensor v_depths, Tensor v_conics, Tensor v_opacities2d, int width, int height, "
      "float near, float far, float eps2d, bool antialiased, bool to_viewmats) -> "
      "(Tensor v_means, Tensor v_quats, Tensor v_scales, Tensor v_opacities, Tensor v_viewmats)");
  m.def("spherical_harmonics(Tensor dirs, Tensor sh0, Tensor shN, Tensor? masks, int degree) -> Tensor");
  m.def(
      "spherical_harmonics_backward(Tensor dirs, Tensor sh0, Tensor shN, Tensor? masks, int degree, Tensor v_colors) "
      "-> (Tensor v_dirs, Tensor v_sh0, Tensor v_shN)");
  m.def(
      "respond(Tensor means, Tensor quats, Tensor logits, Tensor colors, Tensor response, Tensor code, "
      "Tensor windows, Tensor? pose, Tensor time, float softness) -> "
      "(Tensor means_t, Tensor quats_t, Tensor opacities_t, Tensor colors_t)");
  m.def(
      "respond_backward(Tensor response, Tensor code, Tensor windows, Tensor? pose, Tensor time, Tensor opacities_t, "
      "Tensor colors_t, Tensor v_means_t, Tensor v_quats_t, Tensor v_opacities_t, Tensor v_colors_t, "
      "float softness, bool to_response, bool to_code) -> (Tensor v_means, Tensor v_quats, Tensor v_logits, "
      "Tensor v_colors, Tensor v_response, Tensor v_code, Tensor v_windows)");
  m.def(
      "bin_tiles(Tensor means2d, Tensor depths, Tensor conics, Tensor opacities, Tensor radii, int width, int height) "
      "-> (Tensor ids, Tensor tile_offsets)");
  m.def(
      "blend(Tensor values, Tensor means2d, Tensor conics, Tensor opacities, Tensor? background, "
      "Tensor? absgrad_sink, Tensor ids, Tensor tile_offsets, Tensor? pixels, Tensor? pixel_offsets, int width, "
      "int height, int precision) -> (Tensor image, Tensor transmittance, Tensor last)");
  m.def(
      "blend_backward(Tensor values, Tensor means2d, Tensor conics, Tensor opacities, Tensor? background, Tensor ids, "
      "Tensor tile_offsets, Tensor? pixels, Tensor? pixel_offsets, Tensor transmittance, Tensor last, Tensor v_image, "
      "Tensor v_transmittance, int width, int height, int precision, bool geometry, bool to_values, bool absgrad, "
      "bool deterministic) -> (Tensor v_values, Tensor v_means2d, Tensor v_conics, Tensor v_opacities, "
      "Tensor v_absgrad)");
  m.def(
      "lift(Tensor image, Tensor? weights, Tensor means2d, Tensor conics, Tensor opacities, Tensor ids, "
      "Tensor tile_offsets, Tensor? pixels, Tensor? pixel_offsets, int width, int height, int precision, "
      "bool per_view, bool total, bool deterministic) -> (Tensor sums, Tensor total)");
  m.def(
      "seen_pairs(Tensor means2d, Tensor conics, Tensor opacities, Tensor ids, Tensor tile_offsets, Tensor pixels, "
      "Tensor pixel_offsets, int width, int height) -> Tensor");
  m.def("ssim(Tensor image1, Tensor image2) -> (Tensor map, Tensor d_mu, Tensor d_var, Tensor d_cov)");
  m.def("ssim_backward(Tensor image1, Tensor image2, Tensor d_mu, Tensor d_var, Tensor d_cov, Tensor v_map) -> Tensor");
  m.def(
      "contrast(Tensor features, Tensor others, Tensor segments, Tensor other_segments, bool squared, "
      "bool two_exponentials, float temperature, float partner_temperature, bool own_partner) -> "
      "(Tensor losses, Tensor logsums)");
  m.def(
      "contrast_backward(Tensor features, Tensor others, Tensor segments, Tensor other_segments, Tensor logsums, "
      "Tensor v_losses, bool squared, bool two_exponentials, float temperature, float partner_temperature, "
      "bool own_partner, bool to_others) -> (Tensor v_features, Tensor v_others)");
  m.def(
      "adam_rows(Tensor(a!) table, Tensor(b!) first, Tensor(c!) second, Tensor(d!) powers, Tensor rows, Tensor grads, "
      "float rate, float beta1, float beta2, float eps) -> ()");
  m.def(
      "follow_rows(Tensor fast, Tensor(a!) slow, Tensor(b!) followed, Tensor rows, int follows, float momentum) -> "
      "Tensor");
  m.def("sum_bags(Tensor values, Tensor? place, Tensor members, Tensor shares, Tensor ends, Tensor bags) -> Tensor");
  m.def("cpu_isa() -> int");
  m.def("cpu_isa_available(int isa) -> bool");
  m.def("set_cpu_isa(int isa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gsfields, CPU, m) {
  m.impl("project", TORCH_BOX(&gsfields::project<gsfields::Cpu>));
  m.impl("project_backward", TORCH_BOX(&gsfields::project_backward<gsfields::Cpu>));
  m.impl("spherical_harmonics", TORCH_BOX(&gsfields::spherical_harmonics<gsfields::Cpu>));
  m.impl("spherical_harmonics_backward", TORCH_BOX(&gsfields::spherical_harmonics_backward<gsfields::Cpu>));
  m.impl("respond", TORCH_BOX(&gsfields::respond<gsfields::Cpu>));
  m.impl("respond_backward", TORCH_BOX(&gsfields::respond_backward<gsfields::Cpu>));
  m.impl("bin_tiles", TORCH_BOX(&gsfields::bin_tiles<gsfields::Cpu>));
  m.impl("blend", TORCH_BOX(&gsfields::blend<gsfields::Cpu>));
  m.impl("blend_backward", TORCH_BOX(&gsfields::blend_backward<gsfields::Cpu>));
  m.impl("lift", TORCH_BOX(&gsfields::lift<gsfields::Cpu>));
  m.impl("seen_pairs", TORCH_BOX(&gsfields::seen_pairs<gsfields::Cpu>));
  m.impl("ssim", TORCH_BOX(&gsfields::ssim<gsfields::Cpu>));
  m.impl("ssim_backward", TORCH_BOX(&gsfields::ssim_backward<gsfields::Cpu>));
  m.impl("adam_rows", TORCH_BOX(&gsfields::adam_rows<gsfields::Cpu>));
  m.impl("follow_rows", TORCH_BOX(&gsfields::follow_rows<gsfields::Cpu>));
  m.impl("sum_bags", TORCH_BOX(&gsfields::sum_bags<gsfields::Cpu>));
  m.impl("contrast", TORCH_BOX(&gsfields::contrast<gsfields::Cpu>));
  m.impl("contrast_backward", TORCH_BOX(&gsfields::contrast_backward<gsfields::Cpu>));
}

STABLE_TORCH_LIBRARY_IMPL(gsfields, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&gsfields::cpu_isa));
  m.impl("cpu_isa_available", TORCH_BOX(&gsfields::cpu_isa_available));
  m.impl("set_cpu_isa", TORCH_BOX(&gsfields::set_cpu_isa));
}
