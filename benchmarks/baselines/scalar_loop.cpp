// The honest per-pixel loop that the C++ kernels are measured against: one pixel at a time, one Gaussian at a
// time, over exactly the tile lists that the kernel under test gets. It does what a careful first version would
// do (early exit when the pixel is full, accumulators in a local array, tile rows handed to threads as they
// become free) and nothing more: no culling below the tile, no explicit SIMD, exp from the C library.
//
// Rules of compositing: Kerbl et al. 2023, section 6 and appendix C, with the limits stated in gsfields/ops.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int kTile = 16;
constexpr float kAlphaCutoff = 1.0f / 255.0f;
constexpr float kAlphaMax = 0.99f;
constexpr float kTransmittanceStop = 1e-4f;

struct Scene {
  const float* values;     // [N, channels]
  const float* means2d;    // [N, 2]
  const float* conics;     // [N, 3]
  const float* opacities;  // [N]
  const int32_t* ids;      // [I]
  const int64_t* offsets;  // [tiles + 1]
  int width, height, channels;
};

struct Images {
  float* image;          // [height, width, channels]
  float* transmittance;  // [height, width]
  int32_t* visited;      // [height, width] Gaussians looked at
  int32_t* blended;      // [height, width] Gaussians that contributed
};

// kChannels > 0 lets the compiler unroll the accumulation; 0 takes the count at run time.
template <int kChannels>
void blend_pixel(const Scene& s, int64_t begin, int64_t end, int x, int y, const Images& out) {
  const int channels = kChannels > 0 ? kChannels : s.channels;
  const int64_t pixel = static_cast<int64_t>(y) * s.width + x;
  float local[kChannels > 0 ? kChannels : 1] = {};
  float* sum = kChannels > 0 ? local : out.image + pixel * channels;
  std::fill(sum, sum + channels, 0.0f);

  const float px = static_cast<float>(x) + 0.5f;
  const float py = static_cast<float>(y) + 0.5f;
  float transmittance = 1.0f;
  int32_t visited = 0, blended = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t g = s.ids[i];
    ++visited;
    const float dx = s.means2d[2 * g] - px;
    const float dy = s.means2d[2 * g + 1] - py;
    const float* conic = s.conics + 3 * g;
    const float sigma = 0.5f * (conic[0] * dx * dx + conic[2] * dy * dy) + conic[1] * dx * dy;
    if (sigma < 0.0f) continue;
    const float alpha = std::min(kAlphaMax, s.opacities[g] * std::exp(-sigma));
    if (alpha < kAlphaCutoff) continue;
    const float next = transmittance * (1.0f - alpha);
    if (next <= kTransmittanceStop) break;
    const float weight = alpha * transmittance;
    const float* value = s.values + g * channels;
    for (int c = 0; c < channels; ++c) sum[c] += weight * value[c];
    transmittance = next;
    ++blended;
  }
  if (kChannels > 0) std::copy(sum, sum + channels, out.image + pixel * channels);
  out.transmittance[pixel] = transmittance;
  out.visited[pixel] = visited;
  out.blended[pixel] = blended;
}

template <int kChannels>
void blend_tile_row(const Scene& s, int tile_y, const Images& out) {
  const int tiles_x = (s.width + kTile - 1) / kTile;
  const int y_end = std::min(s.height, (tile_y + 1) * kTile);
  for (int tile_x = 0; tile_x < tiles_x; ++tile_x) {
    const int64_t tile = static_cast<int64_t>(tile_y) * tiles_x + tile_x;
    const int x_end = std::min(s.width, (tile_x + 1) * kTile);
    for (int y = tile_y * kTile; y < y_end; ++y)
      for (int x = tile_x * kTile; x < x_end; ++x)
        blend_pixel<kChannels>(s, s.offsets[tile], s.offsets[tile + 1], x, y, out);
  }
}

}  // namespace

extern "C" void scalar_blend(const float* values, const float* means2d, const float* conics, const float* opacities,
                             const int32_t* ids, const int64_t* offsets, int32_t width, int32_t height,
                             int32_t channels, int32_t threads, float* image, float* transmittance, int32_t* visited,
                             int32_t* blended) {
  const Scene scene{values, means2d, conics, opacities, ids, offsets, width, height, channels};
  const Images out{image, transmittance, visited, blended};
  const int tiles_y = (height + kTile - 1) / kTile;
  std::atomic<int> next_row{0};
  auto work = [&] {
    for (int row = next_row++; row < tiles_y; row = next_row++) {
      if (channels == 3)
        blend_tile_row<3>(scene, row, out);
      else
        blend_tile_row<0>(scene, row, out);
    }
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
}
