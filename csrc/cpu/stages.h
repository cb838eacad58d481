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

// The same in pieces of `grain`, handed out one by one: for items that differ widely in cost.
void parallel_pieces(const Threads& threads, int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

// The kernel backs large arrays that are about to be written with large pages, where it offers them: a page fault per
// 4 KB takes longer than many a blend of many channels.
void prefer_large_pages(void* array, int64_t bytes);

// Tile lists of `views` images: for each tile the visible Gaussians that reach it, front to back, ties by index.
// A depth sort, then a counting sort into tiles.
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

// image: rows of [C] in the input's storage; transmittance: rows; last: rows, how much of its tile's list lies before
// the end of what each pixel blended.
template <class S>
void blend(const BlendInput<S>& in, void* image, S* transmittance, int32_t* last, const Threads& threads);

// How much of each tile's list any of its pixels blended, [B·tiles]; -1 where `last` holds a negative number.
template <class S>
std::vector<int32_t> used_lists(const BlendInput<S>& in, const int32_t* last);

template <class S>
void blend_backward(const BlendInput<S>& in, const int32_t* used, const BlendGrads<S>& grads, const Threads& threads);

template <class S>
void lift(const BlendInput<S>& in, const LiftArgs<S>& a, const Threads& threads);

// Which of the pairs of the lists sampled pixels see: those they blend, and those at which they stop. seen: [pairs].
template <class S>
void seen_pairs(const BlendInput<S>& in, bool* seen, const Threads& threads);

template <class S>
void ssim(SsimArgs<S> args, int64_t images, bool backward, const Threads& threads);

template <class S>
void contrast(const ContrastArgs<S>& a, bool backward, const Threads& threads);

}  // namespace gsfields::cpu
