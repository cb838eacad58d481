// A moving Gaussian at one time of a video: its life span, its low-rank response to the time code, and its place in the
// world where it lives in the frame of a camera (the layers of Layered Motion Fusion, Tschernezki et al. 2025, on
// Gaussians). S is a scalar, T the same or lanes of it.
#pragma once

#include "common.h"
#include "projection.h"

namespace gsfields::math {

// The rows of a response: centre, logit of the opacity, colour.
constexpr int kResponses = 7, kOpacityRow = 3, kColorRow = 4;

template <class T>
GSF_HD T sigmoid(T x) {
  return 1 / (1 + exp(-x));
}

// A life span with soft ends: 1 in its middle, and the slopes of its logarithm by the window's two numbers.
template <class T>
struct Gate {
  T value, to_middle, to_log_half;
};

// σ(m + u) σ(m - u) / σ(m)² with u = (time - middle) / softness, m = half / softness; window: middle, log of half.
// Where u is beyond m by 7 or more, it is below 4 e^-7 < 1/255, and 0 is returned; so where a number is not finite.
template <class T, class S>
GSF_HD Gate<T> gate_at(const T* window, S time, S softness) {
  const S sharpness = 1 / softness;  // reciprocals only: GPUs have no instruction for other quotients of doubles
  const T u = (time - window[0]) * sharpness, m = min(splat<T>(S(1e30)), T(exp(window[1]) * sharpness));
  const auto living = max(u, T(-u)) - m < S(7);
  const T past = exp(T(-m - u)), future = exp(T(u - m)), middle = exp(T(-m));
  const T begun = 1 / (1 + past), lasting = 1 / (1 + future);
  const T to_begin = past * begun, to_end = future * lasting, to_peak = middle * (1 / (1 + middle));
  return {select(living, T((1 + middle) * (1 + middle) * begun * lasting), T{}),
          select(living, T((to_end - to_begin) * sharpness), T{}),
          select(living, T(m * (to_begin + to_end - 2 * to_peak)), T{})};
}

// σ(logit) gate, or 0 where the blend would skip it. (NaN is skipped.)
template <class S, class T>
GSF_HD T opacity_at(T logit, T gate) {
  const T opacity = sigmoid(logit) * gate;
  return select(opacity >= S(kAlphaMin), opacity, T{});
}

// dL/dlogit. σ(logit) is opacity / gate.
template <class T>
GSF_HD T logit_grad(T opacity, T gate, T v_opacity) {
  return select(opacity > T{}, T(v_opacity * opacity * max(T(1 - opacity * (1 / gate)), T{})), T{});
}

// From the frame of a camera to the world.
template <class S>
struct Pose {
  S R[9], quat[4], centre[3];
};

// pose: unit quaternion w, x, y, z and translation.
template <class S>
GSF_HD Pose<S> make_pose(const S* pose) {
  Pose<S> p;
  for (int k = 0; k < 4; ++k) p.quat[k] = pose[k];
  for (int k = 0; k < 3; ++k) p.centre[k] = pose[4 + k];
  rotation(p.quat, p.R);
  return p;
}

template <class S, class T>
GSF_HD void to_world(const Pose<S>& p, T* mean, T* quat) {
  const T x = mean[0], y = mean[1], z = mean[2], w = quat[0], i = quat[1], j = quat[2], k = quat[3];
  const S *R = p.R, *q = p.quat;
  for (int r = 0; r < 3; ++r) mean[r] = R[3 * r] * x + R[3 * r + 1] * y + R[3 * r + 2] * z + p.centre[r];
  quat[0] = q[0] * w - q[1] * i - q[2] * j - q[3] * k;  // Hamilton's product
  quat[1] = q[0] * i + q[1] * w + q[2] * k - q[3] * j;
  quat[2] = q[0] * j - q[1] * k + q[2] * w + q[3] * i;
  quat[3] = q[0] * k + q[1] * j - q[2] * i + q[3] * w;
}

// Gradients of the place in the world become those of the place in the camera's frame.
template <class S, class T>
GSF_HD void to_world_backward(const Pose<S>& p, T* v_mean, T* v_quat) {
  const Pose<S> back = {{p.R[0], p.R[3], p.R[6], p.R[1], p.R[4], p.R[7], p.R[2], p.R[5], p.R[8]},
                        {p.quat[0], -p.quat[1], -p.quat[2], -p.quat[3]},
                        {0, 0, 0}};
  to_world(back, v_mean, v_quat);
}

}  // namespace gsfields::math
