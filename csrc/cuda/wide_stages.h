// The blend of many channels as matrix products on tensor cores, for float: what the stages call instead of their
// kernels for few channels. The scheme is described in wide.h.
#pragma once

#include "tile.h"

namespace gsfields::cuda {

// Whether the current device runs code for the tensor cores that these need, those of sm_80 and later.
bool wide_available();

// As blend(), for any number of channels.
cudaError_t wide_blend(const BlendInput<float>& in, const Packed<float>* packed, void* image, float* transmittance,
                       int32_t* last, cudaStream_t stream);

// Where sums over pixels go: they are added to rows that the caller has zeroed. Rows are those of Gaussians, added to
// by all tiles in no fixed order. Or, for the same bits in every run, rows are those of the pairs
// [first_pair, first_pair + pairs) of the lists (places in ids), added to by one block each in the order of its pixels;
// what belongs to other pairs is left out.
struct WideSums {
  float* sums;            // rows of `stride`
  float* total;           // rows of 1: sums of the weights alone; or null
  int64_t stride;         // floats between rows of sums
  int64_t first_channel;  // of the image, which goes to column 0 of sums; geometry takes all channels, into kMoments
  int64_t channels;       // how many
  bool by_pair;
  int64_t first_pair, pairs;
};

// sums of all channels: {sums, total, C, 0, C}, with rows [N], or [B,N] where in.values_stride is not 0.
inline WideSums sums_by_gaussian(float* sums, float* total, int64_t channels) {
  return {sums, total, channels, 0, channels, false, 0, 0};
}

// Adds weights times rows of the image, as lift(). a.sums and a.total are not used.
cudaError_t wide_lift(const BlendInput<float>& in, const Packed<float>* packed, const LiftArgs<float>& a,
                      const WideSums& to, cudaStream_t stream);

// What comes from the forward pass and from the loss, by rows of the image.
struct WideUpstream {
  const float* transmittance;
  const int32_t* last;
  const void* v_image;
  const float* v_transmittance;
};

// Adds moments (csrc/math/blend.h): rows of math::kMoments, [B,N] or by pair.
cudaError_t wide_geometry(const BlendInput<float>& in, const Packed<float>* packed, const WideUpstream& upstream,
                          const WideSums& to, cudaStream_t stream);

}  // namespace gsfields::cuda
