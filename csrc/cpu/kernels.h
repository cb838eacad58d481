// The CPU kernels as seen from outside: plain argument structs and a table of functions, one table per
// instruction set. Kernels work on ranges or single tiles; who runs them on which thread is decided by the caller.
//
// isa.cpp is compiled once per instruction set, and holds nothing but kernels on raw pointers in an anonymous
// namespace: a std:: template instantiated there could be merged by the linker with the copy of another
// instruction set and crash (or run slowly) elsewhere. Scratch memory is therefore passed in.
#pragma once

#include <cstdint>

#include "../kernel_args.h"
#include "../math/blend.h"
#include "../math/bounds.h"
#include "../math/common.h"

namespace gsfields::cpu {

// Gaussians per chunk of the projection: gradients of the viewmats are summed per chunk, then over chunks in order,
// so that they do not depend on the number of threads.
constexpr int64_t kProjectChunk = 1024;

// Gaussians per chunk of the responses, for the sake of the code's gradient.
constexpr int64_t kRespondChunk = 512;

// A run of tiles in one row of tiles.
struct Span {
  int32_t first_tile, count;
};

// One view of a binning.
template <class S>
struct SpanArgs {
  const S *means2d, *conics, *opacities;  // [N,2] [N,3] [N]
  const int32_t* radii;                   // [N,2]
  int tiles_x, tiles_y;
};

// A splat ready to be evaluated and culled; the ellipse is alpha >= 1/255.
template <class S>
struct alignas(64) Packed {
  math::PixelSplat<S> at_pixels;
  math::Ellipse<S> ellipse;
};

// One view of a blend. Rows are those of the whole blend where pixels are sampled, else the view's.
template <class S>
struct BlendArgs {
  const void* values;  // [N,C] as `storage` tells
  math::Storage storage;
  const S *means2d, *conics, *opacities;  // [N,2] [N,3] [N]
  Packed<S>* packed;                      // [N] written by pack, read by the rest
  const S* background;                    // [C] or null
  const int32_t* ids;                     // of all tiles
  const int64_t* tile_offsets;            // [tiles + 1]
  int64_t channels;
  int width, height, tiles_x;
  const int64_t *pixels, *pixel_offsets;  // sampled pixels and their tiles' ends, or null
  int64_t first_pixel;                    // of this view, among those of all
  void* image;                            // rows of [C]
  S* transmittance;                       // rows
  int32_t* last;                          // rows: how much of the tile's list each pixel blended
};

// Few channels are summed with a pixel in each lane; from so many on with a channel in each lane, as products of
// matrices. Measured where both take as long, on AVX-512; with AVX2 the first is a little lower. The backward pass
// keeps to pixels for longer, because it then has the gradients of values and geometry from one walk.
constexpr int64_t kWideForward = 8, kWideBackward = 28;
GSF_HD bool is_wide(int64_t channels, math::Storage storage, int64_t from) {
  return channels >= from || storage != math::Storage::kFull;
}

// Records hold, per (Gaussian, tile) pair, sums over the tile's pixels.
using math::kMoments;

template <class S>
struct BlendBackwardArgs {
  BlendArgs<S> forward;      // outputs unused
  const int32_t* used;       // [tiles] the largest `last` of each tile
  const void* v_image;       // rows of [C]
  const S* v_transmittance;  // rows
  bool to_values;            // only if not wide
  int64_t record_size;       // kMoments, plus channels rounded up to 4 if to_values
  S* records;                // of this tile [used, record_size]: math::Moment, then dL/dvalues
};

template <class S>
struct LiftTileArgs {
  BlendArgs<S> forward;             // values and outputs unused
  const int32_t* used;              // [tiles] how much of each tile's list to walk at most
  const void* image;                // rows of [forward.channels]
  const S* factors;                 // rows, or null
  int64_t first_channel, channels;  // the channels to sum now; channel forward.channels is one of ones
  int64_t record_size;              // channels rounded up to a vector
  S* records;                       // of this tile [used, record_size]
};

// Others that are compared with a row of pixels fill whole vectors of any instruction set, an odd number of them, lest
// the numbers of an embedding lie at the same place in all sets of a cache.
GSF_HD int64_t contrast_stride(int64_t others) { return ((others + 15) / 16 | 1) * 16; }

template <class S>
struct Kernels {
  int lanes;
  void (*project)(const ProjectArgs<S>&, int64_t begin, int64_t end);
  void (*project_backward)(const ProjectBackwardArgs<S>&, int64_t begin, int64_t end);  // begin: multiple of chunk
  void (*sh)(const ShArgs<S>&, int64_t begin, int64_t end);
  void (*sh_backward)(const ShArgs<S>&, int64_t begin, int64_t end);
  void (*respond)(const RespondArgs<S>&, int64_t begin, int64_t end);
  void (*respond_backward)(const RespondBackwardArgs<S>&, int64_t begin, int64_t end);  // begin: multiple of chunk
  // Writes the spans of Gaussians ids[0, count), at most tiles_y each, and how many each has; returns their number.
  int64_t (*tile_spans)(const SpanArgs<S>&, const int32_t* ids, int64_t count, Span* spans, int32_t* spans_each);
  void (*pack)(const BlendArgs<S>&, int64_t begin, int64_t end);  // Gaussians
  int64_t (*blend_scratch)(int64_t channels, math::Storage);
  void (*blend_tile)(const BlendArgs<S>&, int64_t tile, void* scratch);
  int64_t (*blend_backward_scratch)(int64_t longest);
  void (*blend_backward_tile)(const BlendBackwardArgs<S>&, int64_t tile, void* scratch);
  int64_t (*lift_scratch)();
  int (*lift_tile)(const LiftTileArgs<S>&, int64_t tile, void* scratch);  // returns how many records it wrote
  int64_t (*seen_scratch)();
  void (*seen_tile)(const BlendArgs<S>&, int64_t tile, bool* seen, void* scratch);  // seen: of all pairs
  int64_t (*ssim_scratch)(int64_t row, int64_t band);
  void (*ssim_rows)(const SsimArgs<S>&, int64_t begin, int64_t end, void* scratch);
  void (*ssim_backward_rows)(const SsimArgs<S>&, int64_t begin, int64_t end, void* scratch);
  void (*adam_rows)(const AdamArgs<S>&, int64_t begin, int64_t end);      // of the rows
  void (*follow_rows)(const FollowArgs<S>&, int64_t begin, int64_t end);  // of the rows
  void (*sum_bags)(const BagArgs<S>&, int64_t begin, int64_t end);        // of those that are asked for
  int64_t (*contrast_shared)(const ContrastArgs<S>&);  // bytes that contrast_prepare writes and all rows read
  void (*contrast_prepare)(const ContrastArgs<S>&, void* shared);
  int64_t (*contrast_scratch)(const ContrastArgs<S>&);
  void (*contrast_rows)(const ContrastArgs<S>&, const void* shared, int64_t begin, int64_t end, void* scratch);
  void (*contrast_backward_rows)(const ContrastArgs<S>&, const void* shared, int64_t begin, int64_t end, S* v_columns,
                                 void* scratch);
};

struct IsaTable {
  Kernels<float> f32;
  Kernels<double> f64;
  template <class S>
  const Kernels<S>& of() const;
};
template <>
inline const Kernels<float>& IsaTable::of<float>() const {
  return f32;
}
template <>
inline const Kernels<double>& IsaTable::of<double>() const {
  return f64;
}

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// dispatch.cpp: the instruction set in use is the best this CPU has, or what GSFIELDS_CPU_ISA names.
bool isa_available(Isa isa);
Isa current_isa();
void set_isa(Isa isa);  // must be available
const IsaTable& kernels();

}  // namespace gsfields::cpu
