// What the kernels take, on either backend: sizes and raw pointers to contiguous arrays.
#pragma once

#include <cstdint>

#include "math/common.h"
#include "math/storage.h"

namespace gsfields {

template <class S>
struct ProjectArgs {
  int64_t n, views;
  const S *means, *quats, *scales, *opacities;  // [N,3] [N,4] [N,3] [N]
  const S *viewmats, *Ks;                       // [B,4,4] [B,3,3]
  int width, height;
  S near_plane, far_plane, eps2d;
  bool antialiased;
  S *means2d, *depths, *conics, *opacities2d;  // [B,N,2] [B,N] [B,N,3] [B,N]
  int32_t* radii;                              // [B,N,2]
};

template <class S>
struct ProjectBackwardArgs {
  ProjectArgs<S> forward;  // outputs unused except radii, which tell what was visible
  const S *v_means2d, *v_depths, *v_conics, *v_opacities2d;
  S *v_means, *v_quats, *v_scales, *v_opacities;  // as the inputs, summed over views
  S* v_views;  // sums over parts of the Gaussians of the gradients of viewmats [parts, B, 12], or null
};

template <class S>
struct ShArgs {
  int64_t n, views, channels, rest;  // rest: coefficients per Gaussian beyond the first
  int degree;
  const S* dirs;                   // [B,N,3]
  const S *sh0, *shN;              // rows of [1,D] and [rest,D]
  int64_t sh0_stride, shN_stride;  // elements between rows
  const bool* masks;               // [B,N] or null
  S* colors;                       // [B,N,D]
  const S* v_colors;               // backward
  S *v_dirs, *v_sh0, *v_shN;       // [B,N,3] [N,1,D] [N,rest,D]
};

// Moving Gaussians at one time of a video (math/respond.h), of which each has a response of 7 rows of `rank` numbers.
template <class S>
struct RespondArgs {
  int64_t n, rank;
  const S *means, *quats, *logits, *colors;       // [N,3] [N,4] [N] [N,3]
  const S *response, *code, *windows;             // [N,7,rank] [rank] [N,2]
  const S* pose;                                  // [7] or null
  const S* time;                                  // one number, in the unit of windows
  S softness;                                     // in the unit of windows
  S *means_t, *quats_t, *opacities_t, *colors_t;  // at that time, as the inputs
};

template <class S>
struct RespondBackwardArgs {
  RespondArgs<S> forward;  // means, quats, logits and colors unused; of the outputs, opacities_t and colors_t are read
  const S *v_means_t, *v_quats_t, *v_opacities_t, *v_colors_t;
  S *v_means, *v_quats, *v_logits, *v_colors, *v_windows;  // as the inputs
  S* v_response;                                           // as the input, or null
  S* v_codes;  // sums over parts of the Gaussians of the gradient of the code [parts, rank], or null
};

GSF_HD int tiles_along(int pixels) { return (pixels + math::kTile - 1) / math::kTile; }

// The tile, among those of all views, of a pixel of [B,H,W].
GSF_HD int64_t tile_of_pixel(int64_t pixel, int width, int height) {
  const int64_t row = pixel / width, view = row / height;
  return (view * tiles_along(height) + row % height / math::kTile) * tiles_along(width) + pixel % width / math::kTile;
}

// Projected Gaussians of `views` images, to be listed by tile.
template <class S>
struct BinInput {
  int64_t n, views;
  const S *means2d, *depths, *conics, *opacities;  // [B,N,2] [B,N] [B,N,3] [B,N]
  const int32_t* radii;                            // [B,N,2]
  int width, height;
};

// What products over many channels compute in on a GPU: float, or tensor cores with factors rounded to TF32 or
// bfloat16. Sums are float throughout.
enum class Precision : int { kFp32, kTf32, kBf16 };

// Blend of `views` images, of all their pixels or of some. Values are [N,C] (values_stride 0) or [B,N,C] (N·C);
// background [C], [B,C] or null. A row is what an image holds of one pixel: rows are [B,H,W], or [P] for P sampled
// pixels, which are sorted by tile.
template <class S>
struct BlendInput {
  int64_t n, views, channels, values_stride, background_stride;
  const void* values;     // as `storage` tells; null for a lift
  math::Storage storage;  // of values and images
  Precision precision;
  const S *means2d, *conics, *opacities, *background;
  const int32_t* ids;
  int64_t pairs;  // length of ids
  const int64_t* tile_offsets;
  int width, height;
  const int64_t *pixels, *pixel_offsets;  // [P] indices into [B,H,W], [B·tiles + 1]; null for all pixels
  int64_t rows;
};

template <class S>
struct BlendGrads {
  const void* v_image;                    // rows of [C], in the input's storage
  const S* v_transmittance;               // rows
  S* v_values;                            // as values, in full, or null
  S *v_means2d, *v_conics, *v_opacities;  // as the inputs, or all null
  S* absgrad;                             // [B,N,2] or null
  bool deterministic;                     // the same bits in every run
};

// Sums over pixels of weights times rows of an image: the adjoint of the blend in its values. [N,...], over the views
// too, or [B,N,...] where values_stride of the input is not 0.
template <class S>
struct LiftArgs {
  const void* image;  // rows of [C], in the input's storage
  const S* factors;   // rows, by which the weights of a pixel are multiplied, or null
  S *sums, *total;    // [N,C] of the image; [N] of the weights alone, or null
  bool deterministic;
};

template <class S>
struct SsimArgs {
  int64_t height, row;  // row = width * channels
  int64_t channels;
  const S *image1, *image2;       // [H,W,C]
  S *map, *d_mu, *d_var, *d_cov;  // forward: SSIM and its derivatives by E[x], E[x²], E[xy]
  const S* v_map;                 // backward
  S* v_image1;
};

// A step of Adam on some rows of a table.
template <class S>
struct AdamArgs {
  int64_t n, dim;
  S *table, *first, *second, *powers;  // [N,D]; of each row both betas to the power of its steps [N,2]
  const int64_t* rows;                 // [M], each once
  const S* grads;                      // [M,D]
  S rate, beta1, beta2, eps;
};

// Rows of a table beside those of a slow copy, a moving average of it, which catch up with all that they missed.
template <class S>
struct FollowArgs {
  int64_t n, dim;
  const S* fast;        // [N,D]
  S* slow;              // [N,D]
  int32_t* followed;    // [N] moves of the average that are in `slow`
  const int64_t* rows;  // [M], each once
  int32_t follows;      // moves so far
  S momentum;
  S* both;  // [M,2D]
};

// Sums of bags of rows (ops/rows.py). A bag has members, each with a share; which row a member has, `place` tells.
template <class S>
struct BagArgs {
  int64_t dim, listed;
  const S* values;         // rows of [D]
  const int32_t* place;    // of each thing, below 0 for those without a row; null: thing i has row i
  const int32_t* members;  // [listed] things, those of a bag after those of the bag before
  const S* shares;         // [listed]
  const int64_t* ends;     // where the members of each bag end
  const int64_t* bags;     // [B] those that are asked for
  S* sums;                 // [B,D]
};

// Embeddings of pixels compared with those of others (losses/pairs.py): exp(-x) or, of two exponentials, exp(exp(-x))
// is what a pair counts, x being the distance or its square times the sharpness.
template <class S>
struct ContrastArgs {
  int64_t pixels, others, dim;
  const S *features, *other_features;        // [P,D] [Q,D]
  const int32_t *segments, *other_segments;  // [P] [Q], from 0
  bool squared, two_exponentials;
  bool own_partner;                  // where others are the pixels: whether one is its own partner
  S sharpness, partner_sharpness;    // of pairs of two segments, and of one
  S *losses, *logsums;               // [P]; [P,2] of what all count and of what partners count
  const S* v_losses;                 // backward
  S *v_features, *v_other_features;  // as the inputs; the latter or null
};

}  // namespace gsfields
