// SSIM on the GPU: a thread takes one column of an image down a strip of rows, one channel of one pixel after the
// other, and keeps the last eleven rows, filtered along x, in registers. The maths is csrc/math/ssim.h.
#include "kernels.h"

#include "../math/ssim.h"
#include "launch.h"
#include "tunables.h"

namespace gsfields::cuda {
namespace {

constexpr int kWindow = math::kSsimWindow, kHalf = math::kSsimHalf;
constexpr int kStripRows = kWindow * kSsimStages - 2 * kHalf;      // rows of output
constexpr int kSpan = kSsimBlock + 2 * kHalf * kSsimMostChannels;  // columns of a tile at most
constexpr int kColumnsPerThread = (kSpan + kSsimBlock - 1) / kSsimBlock;

// What a pass reads at each point, the quantities it filters, made of what was read at one point, and what it writes
// at the centre of the window.
template <class S>
struct Forward {
  static constexpr int kRead = 2, kFiltered = 4;  // E[x], E[y], E[x²] + E[y²], E[xy]

  static __device__ void read(const SsimArgs<S>& a, int64_t at, S* to) {
    to[0] = __ldg(a.image1 + at), to[1] = __ldg(a.image2 + at);
  }

  static __device__ S quantity(int q, const S* read) {
    const S x = read[0], y = read[1];
    return q == 0 ? x : q == 1 ? y : q == 2 ? x * x + y * y : x * y;
  }

  static __device__ void write(const SsimArgs<S>& a, int64_t at, const S* E) {
    const auto point = math::ssim_point(E[0], E[1], E[2], E[3]);
    a.map[at] = point.map, a.d_mu[at] = point.d_mu, a.d_var[at] = point.d_var, a.d_cov[at] = point.d_cov;
  }
};

template <class S>
struct Backward {
  static constexpr int kRead = 3, kFiltered = 3;

  static __device__ void read(const SsimArgs<S>& a, int64_t at, S* to) {
    const S v = __ldg(a.v_map + at);
    to[0] = v * __ldg(a.d_mu + at), to[1] = v * __ldg(a.d_var + at), to[2] = v * __ldg(a.d_cov + at);
  }

  static __device__ S quantity(int q, const S* read) { return read[q]; }

  static __device__ void write(const SsimArgs<S>& a, int64_t at, const S* v) {
    a.v_image1[at] = v[0] + 2 * __ldg(a.image1 + at) * v[1] + __ldg(a.image2 + at) * v[2];
  }
};

// Images are cut into groups of at most kSsimMostChannels channels, these into tiles of as many pixels of a row as the
// threads of a block can take, and tiles into strips. The columns of a tile are its pixels, with kHalf to either side,
// times the channels of the group: a window's taps are `channels` columns apart, and where all channels are one group,
// the columns are consecutive in memory.
struct Layout {
  int channels, pixels;  // of a tile
  unsigned groups, tiles, strips;
  int64_t width;

  template <class S>
  explicit Layout(const SsimArgs<S>& a) : width(a.row / a.channels) {
    groups = unsigned(blocks_for(a.channels, kSsimMostChannels));
    channels = int(blocks_for(a.channels, int(groups)));
    pixels = kSsimBlock / channels;
    tiles = unsigned(blocks_for(width, pixels));
    strips = unsigned(blocks_for(a.height, kStripRows));
  }

  __device__ int columns() const { return (pixels + 2 * kHalf) * channels; }
};

// Where a column of a tile lies in a row of the image, or -1 outside.
template <class S>
__device__ int64_t locate(const SsimArgs<S>& a, const Layout& layout, unsigned group, unsigned tile, int column) {
  const int64_t pixel = int64_t(tile) * layout.pixels + column / layout.channels - kHalf;
  const int64_t channel = int64_t(group) * layout.channels + column % layout.channels;
  return pixel >= 0 && pixel < layout.width && channel < a.channels ? pixel * a.channels + channel : -1;
}

// A strip: where its first row begins, its rows of output, and the rows around it that the image has, counted from
// there.
struct Strip {
  int64_t at;
  int rows, top, bottom;

  template <class S>
  __device__ Strip(const SsimArgs<S>& a, const Layout& layout, unsigned strip) {
    const int64_t begin = int64_t(strip % layout.strips) * kStripRows, left = a.height - begin;
    at = (strip / layout.strips * a.height + begin) * a.row;
    rows = int(math::min(left, int64_t(kStripRows)));
    top = int(math::max(-begin, int64_t(-kHalf)));
    bottom = int(math::min(left, int64_t(kStripRows + kHalf)));
  }
};

// What the threads of a block need of kWindow rows of a strip from row y on: values outside the image are zero.
template <class Pass, class S>
__device__ void read_rows(const SsimArgs<S>& a, const Strip& strip, int y, const int64_t* columns, int count,
                          S (*rows)[kWindow][kSpan]) {
#pragma unroll
  for (int c = 0; c < kColumnsPerThread; ++c) {
    const int to = int(threadIdx.x) + c * kSsimBlock;
    if (to >= count) break;
#pragma unroll
    for (int r = 0; r < kWindow; ++r) {
      S read[Pass::kRead] = {};
      if (columns[c] >= 0 && y + r >= strip.top && y + r < strip.bottom)
        Pass::read(a, strip.at + (y + r) * a.row + columns[c], read);
      for (int k = 0; k < Pass::kRead; ++k) rows[k][r][to] = read[k];
    }
  }
}

// At least this many blocks at a time: with less registers the forward pass spills.
template <class Pass, class S>
__global__ void __launch_bounds__(kSsimBlock, 16 / int(sizeof(S)))
    ssim_kernel(const SsimArgs<S> a, const Layout layout) {
  GSF_SHARED(S, rows, [Pass::kRead][kWindow][kSpan]);
  const unsigned group = blockIdx.x % layout.groups, tile = blockIdx.x / layout.groups % layout.tiles;
  const Strip strip(a, layout, blockIdx.x / layout.groups / layout.tiles);

  const int thread = int(threadIdx.x), step = layout.channels, centre = thread + kHalf * step;
  int64_t columns[kColumnsPerThread];  // that this thread reads
  for (int c = 0; c < kColumnsPerThread; ++c) columns[c] = locate(a, layout, group, tile, thread + c * kSsimBlock);
  const bool writes = thread < layout.pixels * step;
  const int64_t column = writes ? locate(a, layout, group, tile, centre) : -1;

  S filtered[Pass::kFiltered][kWindow] = {};  // along x, of the last rows: row y is at (y + kHalf) % kWindow
  for (int y = -kHalf; y < strip.rows + kHalf; y += kWindow) {
    __syncthreads();  // the rows before may still be in use
    read_rows<Pass>(a, strip, y, columns, layout.columns(), rows);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kWindow; ++r) {
      for (int q = 0; q < Pass::kFiltered; ++q)
        filtered[q][r] = math::ssim_filter<S>([&](int k) {
          S read[Pass::kRead];
          for (int i = 0; i < Pass::kRead; ++i) read[i] = rows[i][r][centre + k * step];
          return Pass::quantity(q, read);
        });
      const int out = y + r - kHalf;  // the row whose window is complete
      if (column < 0 || out < 0 || out >= strip.rows) continue;
      S sums[Pass::kFiltered];
      for (int q = 0; q < Pass::kFiltered; ++q)
        sums[q] = math::ssim_filter<S>([&](int k) { return filtered[q][(r + kWindow - kHalf + k) % kWindow]; });
      Pass::write(a, strip.at + out * a.row + column, sums);
    }
  }
}

}  // namespace

template <class S>
cudaError_t ssim(const SsimArgs<S>& a, int64_t images, bool backward, cudaStream_t stream) {
  if (images == 0 || a.height == 0 || a.row == 0) return cudaSuccess;
  const Layout layout(a);
  const int64_t blocks = images * layout.strips * layout.tiles * layout.groups;
  if (backward) return GSF_LAUNCH((ssim_kernel<Backward<S>, S>), blocks, kSsimBlock, stream, a, layout);
  return GSF_LAUNCH((ssim_kernel<Forward<S>, S>), blocks, kSsimBlock, stream, a, layout);
}

template cudaError_t ssim(const SsimArgs<float>&, int64_t, bool, cudaStream_t);
template cudaError_t ssim(const SsimArgs<double>&, int64_t, bool, cudaStream_t);

}  // namespace gsfields::cuda
