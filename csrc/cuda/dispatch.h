// Which kernels take a blend, its backward pass or a lift, by its channels.
#pragma once

#include <utility>

#include "wide_stages.h"

namespace gsfields::cuda {

// Whether a call is for products of matrices on tensor cores.
template <class S>
bool takes_wide(const BlendInput<S>& in) {
  return sizeof(S) == sizeof(float) && in.channels >= kWideChannels && wide_available();
}

// How many channels a thread holds in registers: kernels are compiled for these counts, and pick_channels() calls
// f(std::integral_constant<int, C>()) with the smallest C >= channels, or else the largest.
template <class S>
struct ChannelCounts : std::integer_sequence<int, 1, 2, 3, 4, 8, 16> {
  static constexpr int most = 16;
};
template <>
struct ChannelCounts<double> : std::integer_sequence<int, 1, 4> {
  static constexpr int most = 4;
};

template <class F, int... Cs>
cudaError_t pick_from(std::integer_sequence<int, Cs...>, int most, int64_t channels, const F& f) {
  cudaError_t error = cudaErrorInvalidValue;
  (void)(((channels <= Cs || Cs == most) && ((error = f(std::integral_constant<int, Cs>())), true)) || ...);
  return error;
}
template <class S, class F>
cudaError_t pick_channels(int64_t channels, const F& f) {
  return pick_from(ChannelCounts<S>(), ChannelCounts<S>::most, channels, f);
}

}  // namespace gsfields::cuda
