// All vectorised kernels, compiled once per instruction set (setup.py): GSFIELDS_ISA names this object's set.
// Nothing here may emit a weak symbol; see kernels.h.
#include "adam.h"
#include "bags.h"
#include "blend.h"
#include "contrast.h"
#include "follow.h"
#include "project.h"
#include "respond.h"
#include "seen.h"
#include "spans.h"
#include "ssim.h"

#if defined(__AVX512F__)
#define GSF_LANES_F32 16
#define GSF_LANES_F64 8
#elif defined(__AVX2__)
#define GSF_LANES_F32 8
#define GSF_LANES_F64 4
#else
#define GSF_LANES_F32 4
#define GSF_LANES_F64 4
#endif

#define GSF_JOIN_(a, b) a##b
#define GSF_JOIN(a, b) GSF_JOIN_(a, b)

namespace {
template <class S, int L>
constexpr Kernels<S> table() {
  return {.lanes = L,
          .project = project<S, L>,
          .project_backward = project_backward<S, L>,
          .sh = sh<S>,
          .sh_backward = sh_backward<S>,
          .respond = respond<S, L>,
          .respond_backward = respond_backward<S, L>,
          .tile_spans = tile_spans<S>,
          .pack = pack<S, L>,
          .blend_scratch = blend_scratch<S, L>,
          .blend_tile = blend_tile<S, L>,
          .blend_backward_scratch = blend_backward_scratch<S, L>,
          .blend_backward_tile = blend_backward_tile<S, L>,
          .lift_scratch = lift_scratch<S, L>,
          .lift_tile = lift_tile<S, L>,
          .seen_scratch = seen_scratch<S>,
          .seen_tile = seen_tile<S, L>,
          .ssim_scratch = ssim_scratch<S>,
          .ssim_rows = ssim_rows<S>,
          .ssim_backward_rows = ssim_backward_rows<S>,
          .adam_rows = adam_rows<S, L>,
          .follow_rows = follow_rows<S, L>,
          .sum_bags = sum_bags<S, L>,
          .contrast_shared = contrast_shared<S, L>,
          .contrast_prepare = contrast_prepare<S, L>,
          .contrast_scratch = contrast_scratch<S, L>,
          .contrast_rows = contrast_rows<S, L>,
          .contrast_backward_rows = contrast_backward_rows<S, L>};
}
}  // namespace

namespace gsfields::cpu {
extern const IsaTable GSF_JOIN(isa_table_, GSFIELDS_ISA);
const IsaTable GSF_JOIN(isa_table_, GSFIELDS_ISA) = {table<float, GSF_LANES_F32>(), table<double, GSF_LANES_F64>()};
}  // namespace gsfields::cpu
