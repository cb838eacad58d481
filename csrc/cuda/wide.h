// The blend of many channels as products of matrices: what its three kernels share.
//
// Where it happens. A block takes a patch of 8x8 pixels, a quarter of a tile (or 64 of the pixels sampled in a tile),
// and each of its warps 64 channels. A warp keeps the tile of the matrix that it owns in registers for the whole walk:
//   wide_blend     out[64 pixels][64 channels] += W V     128 sums per thread; V comes from memory
//   wide_lift      dV[16 Gaussians][64] = Wᵀ G            G, the image, in 128 registers; dV is added to memory
//   wide_geometry  S[16 Gaussians][64 pixels] = V Gᵀ      G in 128 registers; V from memory; S is summed over the warps
// W depends on geometry alone. So the walk computes it once for up to 512 channels, with all threads of the block, and
// leaves it in shared memory, from where each warp takes it.
//
// What it costs. A group of 16 Gaussians meets 64 pixels in 1024 pairs, about 15 instructions each, 4 pairs per thread
// with 8 warps; and in 2 · 16 · 64 · C FLOP of products: 2^20 for C = 512, three times as many in fp32. A warp reads
// 16 · 64 values per group, which no other warp of the block reads: 2 · 64 FLOP per value, which is 32 per byte in
// float and 64 in halves, from L2 (the other patches of the tile read them at about the same time). The 4 KiB of W go
// from shared memory to each warp: a quarter of what 16 channels per warp would cost. A larger patch would halve the
// reads of V, but there are no registers left, and it culls worse. Blocks take nearly all registers of an SM for each
// eight warps, so that latency is hidden within the block: by the stages below, and by loads that start early.
//
// The walk. Candidates of the tile's list are culled for the box around the patch, and survivors join a queue in shared
// memory in the order of the list. Groups of 16 go through three stages, all of them at work at once on successive
// groups, with one barrier per step:
//   evaluate()   all threads: alpha[16][64]                                         group g + 2
//   scan         warp 0, two pixels per lane: alpha becomes weight, T goes on       group g + 1
//   the product  all warps                                                          group g
// so that the scan, which is a chain of dependent steps, takes no time of its own. (wide_geometry.cu has its own
// order.)
//
// Precision. bf16 and tf32 round both factors and sum in float. fp32 splits both factors into two TF32 numbers and sums
// three products (wide_operands.h).
#pragma once

#include "wide_operands.h"
#include "wide_stages.h"

namespace gsfields::cuda::wide {

constexpr int kPixels = 64, kPatchSide = 8, kPatchesOfTile = kTilePixels / kPixels;
constexpr int kGroup = 16;         // Gaussians
constexpr int kWarpChannels = 64;  // kOperands · 8
constexpr int kMostWarps = 8, kMostThreads = kMostWarps * kWarp;
constexpr int kMostChannels = kMostWarps * kWarpChannels;  // of a block
static_assert(kPixels == 2 * kWarp && kPatchSide * kPatchSide == kPixels && kWarpChannels == 8 * kOperands);

// Code for devices before sm_80 is empty: wide_available() lets nobody call it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kCallable = false;
#else
constexpr bool kCallable = true;
#endif

inline int warps_for(int64_t channels) {
  return int(math::min(blocks_for(channels, kWarpChannels), int64_t(kMostWarps)));
}

__device__ inline int warp_id() { return int(threadIdx.x) / kWarp; }
__device__ inline int warps() { return int(blockDim.x) / kWarp; }

// Calls f(std::integral_constant<Precision, ...>()).
template <class F>
cudaError_t pick_precision(Precision precision, const F& f) {
  switch (precision) {
    case Precision::kTf32:
      return f(std::integral_constant<Precision, Precision::kTf32>());
    case Precision::kBf16:
      return f(std::integral_constant<Precision, Precision::kBf16>());
    default:
      return f(std::integral_constant<Precision, Precision::kFp32>());
  }
}

// ---- pixels --------------------------------------------------------------------------------------------------------

// The pixels of a patch, in shared memory. A lane is in charge of pixels lane and lane + 32, in whatever warp.
struct Patch {
  Tile tile;
  Box<float> box;                // around the pixels that there are
  float x[kPixels], y[kPixels];  // centres
  float T[kPixels];
  int32_t last[kPixels];
  int64_t row[kPixels];  // -1 where there is no pixel
  bool done[kPixels];    // accepts no more Gaussians, or there is no pixel
};

// How many patches a tile has, or rounds of kPixels among its samples.
__device__ inline int count_patches(const BlendInput<float>& in, unsigned tile) {
  if (!in.pixels) return kPatchesOfTile;
  const Samples samples = samples_of(in, tile);
  return int((samples.end - samples.begin + kPixels - 1) / kPixels);
}

__device__ inline Box<float> bounding_box(const Patch& patch) {
  Box<float> box = {1e30f, -1e30f, 1e30f, -1e30f};
  for (int p = 0; p < kPixels; ++p) {
    if (patch.row[p] < 0) continue;
    box.left = math::min(box.left, patch.x[p]), box.right = math::max(box.right, patch.x[p]);
    box.top = math::min(box.top, patch.y[p]), box.bottom = math::max(box.bottom, patch.y[p]);
  }
  return box;
}

// Fills the patch once all threads have left the one before. Returns how many of its places can hold a pixel.
__device__ inline int fill_patch(const BlendInput<float>& in, const Tile& tile, int number, Patch& patch) {
  const Samples samples = in.pixels ? samples_of(in, tile.index) : Samples{0, 0};
  const int64_t first = samples.begin + int64_t(number) * kPixels;
  __syncthreads();
  for (int p = int(threadIdx.x); p < kPixels; p += int(blockDim.x)) {
    int x = tile.x0 + number % kPatchesAlong * kPatchSide + p % kPatchSide;
    int y = tile.y0 + number / kPatchesAlong * kPatchSide + p / kPatchSide;
    int64_t row = x < in.width && y < in.height ? (int64_t(tile.view) * in.height + y) * in.width + x : -1;
    if (in.pixels) {
      row = first + p < samples.end ? first + p : -1;
      // The nearest that there is, if the list is wrong.
      const int64_t pixels = in.views * in.height * in.width;
      const int64_t pixel = row < 0 ? 0 : math::max<int64_t>(math::min(in.pixels[row], pixels - 1), 0);
      x = int(pixel % in.width), y = int(pixel / in.width % in.height);
    }
    patch.x[p] = float(x) + 0.5f, patch.y[p] = float(y) + 0.5f;
    patch.T[p] = 1, patch.last[p] = 0, patch.row[p] = row, patch.done[p] = row < 0;
  }
  __syncthreads();
  if (threadIdx.x == 0) patch.tile = tile, patch.box = bounding_box(patch);
  __syncthreads();
  return in.pixels ? int(math::min<int64_t>(samples.end - first, kPixels)) : kPixels;
}

// ---- the list ------------------------------------------------------------------------------------------------------

// A Gaussian that reaches the patch, and its place in the tile's list.
struct alignas(16) Survivor : math::PixelSplat<float> {
  int32_t id, position;
};

// Survivors in shared memory, a ring: those of the groups in work, of the next group and of one batch of candidates.
template <int kCandidates>
struct Queue {
  static constexpr int kBatch = kCandidates, kCapacity = 2 * kCandidates;
  static_assert(kCandidates >= 4 * kGroup && (kCapacity & (kCapacity - 1)) == 0);
  Survivor ring[kCapacity];
  int found[kMostWarps];  // in the batch, by each warp

  __device__ Survivor& at(int number) { return ring[number % kCapacity]; }
};

// Some successive survivors, at most kGroup.
struct Group {
  int first, count;
};

// A walk through part of a tile's list, in the same state in all threads: the next candidate, where to stop, and 1 or
// -1.
template <class Queue>
struct Walk {
  const BlendInput<float>& in;
  const Packed<float>* packed;
  const Patch& patch;
  Queue& queue;
  int next, end, step;
  int taken = 0, queued = 0;

  // Each thread culls one candidate.
  __device__ void refill() {
    const int batch = math::min(int(blockDim.x), Queue::kBatch), mine = int(threadIdx.x);
    Survivor survivor = {};
    bool reaching = false;
    if (mine < batch && mine < (end - next) * step) {
      survivor.position = next + mine * step, survivor.id = in.ids[patch.tile.begin + survivor.position];
      if (survivor.id >= 0 && survivor.id < in.n) {
        const Packed<float> from = packed[int64_t(patch.tile.view) * in.n + survivor.id];
        const Box<float> box = patch.box;
        static_cast<math::PixelSplat<float>&>(survivor) = from.splat;
        reaching = math::reaches(from.splat, from.reach, box.left, box.right, box.top, box.bottom);
      }
    }
    const unsigned found = __ballot_sync(kFullWarp, reaching);
    if (lane_id() == 0) queue.found[warp_id()] = __popc(found);
    __syncthreads();
    int before = queued;
    for (int warp = 0; warp < warps(); ++warp) {
      if (warp < warp_id()) before += queue.found[warp];
      queued += queue.found[warp];
    }
    if (reaching) queue.at(before + __popc(found & ((1u << lane_id()) - 1))) = survivor;
    next = (end - next) * step > batch ? next + batch * step : end;
    __syncthreads();
  }

  // The next group, of which only the last can have less than kGroup; none at the end.
  __device__ Group take() {
    while (queued - taken < kGroup && next != end) refill();
    const Group group = {taken, math::min(kGroup, queued - taken)};
    taken += group.count;
    return group;
  }
};

// ---- pairs ---------------------------------------------------------------------------------------------------------

// Numbers per pair of a group and the patch, for the groups of some stages. Rows are so far apart that the products
// find no conflicts of banks.
template <int kStages, int kRow>
struct alignas(16) Pairs {
  using Numbers = float[kGroup][kRow];
  Numbers of[kStages];
};

// alpha of the group's pairs, those that accept(position, pixel) does not want and those beyond the group being 0.
// Each warp takes some Gaussians.
template <class Queue, int kRow, class Accept>
__device__ void evaluate(const Patch& patch, Queue& queue, const Group& group, float (&alphas)[kGroup][kRow],
                         const Accept& accept) {
  if (group.count == 0) return;
  for (int k = warp_id(); k < kGroup; k += warps()) {
    const Survivor s = queue.at(group.first + k);
#pragma unroll
    for (int p = lane_id(); p < kPixels; p += kWarp) {
      const float scaled = math::scaled_exponent(s, patch.x[p] - s.x, patch.y[p] - s.y);
      const float alpha = math::pair_alpha(s, scaled, falloff(scaled));
      alphas[k][p] = k < group.count && accept(s.position, p) ? alpha : 0.0f;
    }
  }
}

// Warp 0: alpha becomes the weight alpha T, times scale[pixel] if that is given, from front to back. Returns whether
// the warp found any weight.
template <class Queue, int kRow>
__device__ bool scan(Patch& patch, Queue& queue, const Group& group, float (&pairs)[kGroup][kRow], const float* scale) {
  bool any = false;
#pragma unroll
  for (int p = lane_id(); p < kPixels; p += kWarp) {
    float T = patch.T[p];
    int32_t last = patch.last[p];
    bool done = patch.done[p];
    const float factor = scale ? scale[p] : 1.0f;
    for (int k = 0; k < group.count; ++k) {
      const float alpha = pairs[k][p], following = T * (1 - alpha);
      done = done || following <= float(math::kTransmittanceMin);
      const bool blended = !done && alpha > 0;
      pairs[k][p] = blended ? alpha * T * factor : 0.0f;
      if (blended) T = following, last = queue.at(group.first + k).position + 1, any = true;
    }
    patch.T[p] = T, patch.last[p] = last, patch.done[p] = done;
  }
  return __any_sync(kFullWarp, any);
}

// Whether a pixel of this thread's lane goes on.
__device__ inline bool goes_on(const Patch& patch) { return !patch.done[lane_id()] || !patch.done[lane_id() + kWarp]; }

// From front to back through the tile's list. product(group, weights, fetched) is called for each group with weight in
// the patch; fetched = fetch(group, whether it is needed) is called early, so that its loads are under way meanwhile.
// All threads of the block walk together. weighted: whether the group of a stage has any weight.
template <int kRow, class Queue, class Fetch, class Product>
__device__ void front_to_back(Walk<Queue>& walk, Patch& patch, Pairs<3, kRow>& stages, bool (&weighted)[3],
                              const float* scale, const Fetch& fetch, const Product& product) {
  const auto all = [](int, int) { return true; };
  Group evaluated = {0, 0}, scanned = {0, 0}, multiplied = {0, 0};
  bool alive = true;
  int stage = 0;  // of the group to be multiplied
  do {
    multiplied = scanned, scanned = evaluated, evaluated = alive ? walk.take() : Group{0, 0};
    const int second = stage == 2 ? 0 : stage + 1, third = stage == 0 ? 2 : stage - 1;
    const bool multiplies = multiplied.count > 0 && weighted[stage];
    const auto fetched = fetch(multiplied, multiplies);
    evaluate(patch, walk.queue, evaluated, stages.of[third], all);
    bool goes = true;
    if (warp_id() == 0 && scanned.count > 0) {
      const bool any = scan(patch, walk.queue, scanned, stages.of[second], scale);
      if (lane_id() == 0) weighted[second] = any;
    }
    if (warp_id() == 0) goes = goes_on(patch);
    if (multiplies) product(multiplied, stages.of[stage], fetched);
    alive = __syncthreads_or(warp_id() == 0 && goes);
    stage = second;
  } while (evaluated.count > 0 || scanned.count > 0);
}

// ---- sums over pixels ----------------------------------------------------------------------------------------------

// Whether the block has anything to add.
__device__ inline bool wants(const WideSums& to, const Tile& tile) {
  return !to.by_pair || (tile.begin < to.first_pair + to.pairs && tile.begin + tile.listed > to.first_pair);
}

// The row of sums of a survivor, -1 where it is not wanted. per_view: rows are [B,N], not [N].
__device__ inline int64_t sum_row(const BlendInput<float>& in, const WideSums& to, const Tile& tile, const Survivor& s,
                                  bool per_view) {
  if (!to.by_pair) return (per_view ? int64_t(tile.view) * in.n : 0) + s.id;
  const int64_t pair = tile.begin + s.position - to.first_pair;
  return pair < to.pairs ? math::max<int64_t>(pair, -1) : -1;
}

// The blocks of a tile: one for each patch, or a single one where sums are by pair, which keeps their order.
GSF_HD int blocks_of_tile(const WideSums& to) { return to.by_pair ? 1 : kPatchesOfTile; }

}  // namespace gsfields::cuda::wide
