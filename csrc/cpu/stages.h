// The stages of rendering on the CPU as whole-array calls: they spread kernels over threads and own scratch memory.
// Results do not depend on the number of threads. Free of torch, so that C++ tests and sanitizers can run them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels.h"

namespace gsfields::cpu {

// How to run work on several threads: run(f) calls f(worker) once for every worker in [0, count), possibly at the
// same time, and returns when all are done. f must not throw.
struct Threads {
  int count;
  std::function<void(const std::function<void(int)>&)> run;
};

// Calls f(begin, end) on disjoint ranges that cover [0, n), each a multiple of `grain` long except the last.
void parallel_ranges(const Threads& threads, int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

// Tile lists of `views` images: for each tile the visible Gaussians that reach it, front to back, ties by index.
// A depth sort, then a counting sort into tiles.
template <class S>
struct BinInput {
  int64_t n, views;
  const S *means2d, *depths, *conics, *opacities;  // [B,N,2] [B,N] [B,N,3] [B,N]
  const int32_t* radii;                            // [B,N,2]
  int width, height;
};

template <class S>
class Binning {
 public:
  Binning(const BinInput<S>& input, int64_t* tile_offsets, const Threads& threads);  // offsets: [B·tiles + 1]
  int64_t total() const { return total_; }
  void fill(int32_t* ids);  // [total]; once

 private:
  // A contiguous part of one view's depth order: its Gaussians, their spans of tiles, and where its next id of each
  // tile goes.
  struct Chunk {
    std::vector<int32_t> ids, spans_each;
    std::vector<Span> spans;
    std::vector<int64_t> next;
  };
  std::vector<Chunk> chunks_;
  const Threads& threads_;
  int64_t total_ = 0;
};

// Blend of `views` images. Values are [N,C] (values_stride 0) or [B,N,C] (N·C); background [C], [B,C] or null.
template <class S>
struct BlendInput {
  int64_t n, views, channels, values_stride, background_stride;
  const S *values, *means2d, *conics, *opacities, *background;
  const int32_t* ids;
  const int64_t* tile_offsets;
  int width, height;
};

template <class S>
struct BlendGrads {
  const S *v_image, *v_transmittance;     // [B,H,W,C] [B,H,W]
  S* v_values;                            // as values, or null
  S *v_means2d, *v_conics, *v_opacities;  // as the inputs, or all null
  S* absgrad;                             // [B,N,2] or null
};

template <class S>
void blend(const BlendInput<S>& in, S* image, S* transmittance, int32_t* used, const Threads& threads);

template <class S>
void blend_backward(const BlendInput<S>& in, const int32_t* used, const BlendGrads<S>& grads, const Threads& threads);

template <class S>
void ssim(SsimArgs<S> args, int64_t images, bool backward, const Threads& threads);

inline int tiles_along(int pixels) { return (pixels + math::kTile - 1) / math::kTile; }

}  // namespace gsfields::cpu
