// Moving Gaussians at one time of a video (csrc/math/respond.h), over a range of them: a Gaussian in each lane, except
// for the responses, of which a row at a time lies across the lanes. Included by isa.cpp.
#pragma once

#include "../math/respond.h"
#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;
using math::kResponses;

constexpr int kPadded = (kResponses + 3) / 4 * 4;

// -1 in the first `count` lanes.
template <class S, int L>
GSF_HD typename Lanes<S, L>::M first_lanes(int64_t count) {
  typename Lanes<S, L>::M lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  return lane < typename Lanes<S, L>::I(count);
}

// The first `count` numbers of a vector from memory, the others 0; and back. No others are touched.
template <class S, int L>
GSF_HD typename Lanes<S, L>::V load_first(const S* p, int64_t count) {
  using V = typename Lanes<S, L>::V;
  if (count >= L) return load<V>(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(S) == 4) return (V)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  if constexpr (sizeof(V) == 64 && sizeof(S) == 8) return (V)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && sizeof(S) == 4) return (V)_mm256_maskload_ps(p, (__m256i)first_lanes<S, L>(count));
  if constexpr (sizeof(V) == 32 && sizeof(S) == 8) return (V)_mm256_maskload_pd(p, (__m256i)first_lanes<S, L>(count));
#endif
  V v = {};
  for (int64_t l = 0; l < count; ++l) v[l] = p[l];
  return v;
}

template <class S, int L>
GSF_HD void store_first(typename Lanes<S, L>::V v, S* p, int64_t count) {
  if (count >= L) {
    __builtin_memcpy(p, &v, sizeof(v));
    return;
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(v) == 64 && sizeof(S) == 4)
    return _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
  if constexpr (sizeof(v) == 64 && sizeof(S) == 8)
    return _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), (__m512d)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(v) == 32 && sizeof(S) == 4)
    return _mm256_maskstore_ps(p, (__m256i)first_lanes<S, L>(count), (__m256)v);
  if constexpr (sizeof(v) == 32 && sizeof(S) == 8)
    return _mm256_maskstore_pd(p, (__m256i)first_lanes<S, L>(count), (__m256d)v);
#endif
  for (int64_t l = 0; l < count; ++l) p[l] = v[l];
}

// Products of the code with the rows of a response, and one 0. Short rows take fewer lanes.
template <class S, int L>
GSF_HD void products_with(const S* code, const S* rows, int64_t rank, S* products) {
  if constexpr (L > 4)
    if (rank <= L / 2) return products_with<S, L / 2>(code, rows, rank, products);
  using V = typename Lanes<S, L>::V;
  V sum[kPadded] = {};
  for (int64_t d = 0; d < rank; d += L) {
    const V c = load_first<S, L>(code + d, rank - d);
    for (int k = 0; k < kResponses; ++k) sum[k] += load_first<S, L>(rows + k * rank + d, rank - d) * c;
  }
  for (int k = 0; k < kPadded; ++k) products[k] = 0;
  for (int k = 0; k < kPadded; k += 4) add_sums(sum[k], sum[k + 1], sum[k + 2], sum[k + 3], products + k);
}

// The responses of L Gaussians, of which only those of the living are read.
template <class S, int L, class V>
GSF_HD void responses_of(const RespondArgs<S>& a, int64_t i, int64_t count, V gate, V* r) {
  if (!any(gate >= S(math::kAlphaMin))) return;
  alignas(64) S products[L][kPadded] = {};
  for (int64_t l = 0; l < count; ++l)
    if (gate[l] >= S(math::kAlphaMin))
      products_with<S, L>(a.code, a.response + (i + l) * kResponses * a.rank, a.rank, products[l]);
  load_rows<V, kPadded>(products[0], 0, L, r);
}

template <class S, int L>
void respond(const RespondArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  const auto pose = a.pose ? math::make_pose(a.pose) : math::Pose<S>{};
  for (int64_t i = begin; i < end; i += L) {
    const int64_t count = end - i < L ? end - i : L;
    V window[2], logit, mean[3], quat[4], color[3], r[kPadded] = {};
    load_rows<V, 2>(a.windows, i, end, window);
    load_rows<V, 1>(a.logits, i, end, &logit);
    load_rows<V, 3>(a.means, i, end, mean);
    load_rows<V, 4>(a.quats, i, end, quat);
    load_rows<V, 3>(a.colors, i, end, color);
    const V gate = math::gate_at(window, *a.time, a.softness).value;
    responses_of<S, L>(a, i, count, gate, r);
    const V opacity = math::opacity_at<S>(V(logit + r[math::kOpacityRow]), gate);
    const auto seen = opacity > S(0);
    for (int k = 0; k < 3; ++k) {
      mean[k] += math::select(seen, r[k], V{});
      color[k] = math::max(V(color[k] + math::select(seen, r[math::kColorRow + k], V{})), V{});
    }
    if (a.pose) math::to_world(pose, mean, quat);
    store_rows<V, 3>(a.means_t, i, count, mean);
    store_rows<V, 4>(a.quats_t, i, count, quat);
    store_rows<V, 1>(a.opacities_t, i, count, &opacity);
    store_rows<V, 3>(a.colors_t, i, count, color);
  }
}

// Gradients of L Gaussians but for their responses', which are v_r times the code.
template <class S, int L, class V>
GSF_HD void respond_backward_of(const RespondBackwardArgs<S>& a, const math::Pose<S>& pose, int64_t i, int64_t end,
                                V* v_r) {
  const RespondArgs<S>& f = a.forward;
  const int64_t count = end - i < L ? end - i : L;
  V window[2], opacity, color[3], v_opacity, v_mean[3], v_quat[4], v_color[3];
  load_rows<V, 2>(f.windows, i, end, window);
  load_rows<V, 1>(f.opacities_t, i, end, &opacity);
  load_rows<V, 3>(f.colors_t, i, end, color);
  load_rows<V, 1>(a.v_opacities_t, i, end, &v_opacity);
  load_rows<V, 3>(a.v_means_t, i, end, v_mean);
  load_rows<V, 4>(a.v_quats_t, i, end, v_quat);
  load_rows<V, 3>(a.v_colors_t, i, end, v_color);
  if (f.pose) math::to_world_backward(pose, v_mean, v_quat);
  for (int k = 0; k < 3; ++k) v_color[k] = math::select(color[k] > S(0), v_color[k], V{});
  const auto gate = math::gate_at(window, *f.time, f.softness);
  const V v_logit = math::logit_grad(opacity, gate.value, v_opacity), v_gate = v_opacity * opacity;
  const V v_window[2] = {v_gate * gate.to_middle, v_gate * gate.to_log_half};
  const auto seen = opacity > S(0);
  for (int k = 0; k < 3; ++k) {
    v_r[k] = math::select(seen, v_mean[k], V{});
    v_r[math::kColorRow + k] = math::select(seen, v_color[k], V{});
  }
  v_r[math::kOpacityRow] = v_logit;
  store_rows<V, 3>(a.v_means, i, count, v_mean);
  store_rows<V, 4>(a.v_quats, i, count, v_quat);
  store_rows<V, 1>(a.v_logits, i, count, &v_logit);
  store_rows<V, 3>(a.v_colors, i, count, v_color);
  store_rows<V, 2>(a.v_windows, i, count, v_window);
}

// The gradient of one response, and what it adds to that of the code.
template <class S, int L>
GSF_HD void response_backward(const RespondBackwardArgs<S>& a, int64_t i, const S* v_r, S* v_code) {
  const int64_t rank = a.forward.rank, at = i * kResponses * rank;
  if constexpr (L > 4)
    if (rank <= L / 2) return response_backward<S, L / 2>(a, i, v_r, v_code);
  using V = typename Lanes<S, L>::V;
  bool moved = false;
  for (int k = 0; k < kResponses; ++k) moved |= v_r[k] != 0;
  if (!moved) {  // not even its response is read
    if (a.v_response) __builtin_memset(a.v_response + at, 0, sizeof(S) * size_t(kResponses * rank));
    return;
  }
  for (int64_t d = 0; d < rank; d += L) {
    const int64_t count = rank - d;
    const V code = load_first<S, L>(a.forward.code + d, count);
    if (a.v_response)
      for (int k = 0; k < kResponses; ++k) store_first<S, L>(v_r[k] * code, a.v_response + at + k * rank + d, count);
    if (!v_code) continue;
    V sum = load_first<S, L>(v_code + d, count);
    for (int k = 0; k < kResponses; ++k)
      sum += v_r[k] * load_first<S, L>(a.forward.response + at + k * rank + d, count);
    store_first<S, L>(sum, v_code + d, count);
  }
}

template <class S, int L>
void respond_backward(const RespondBackwardArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  const RespondArgs<S>& f = a.forward;
  const auto pose = f.pose ? math::make_pose(f.pose) : math::Pose<S>{};
  static_assert(kRespondChunk % L == 0);
  for (int64_t i = begin; i < end; i += L) {
    S* const v_code = a.v_codes ? a.v_codes + i / kRespondChunk * f.rank : nullptr;
    if (v_code && i % kRespondChunk == 0) __builtin_memset(v_code, 0, sizeof(S) * size_t(f.rank));
    V v_r[kResponses];
    respond_backward_of<S, L>(a, pose, i, end, v_r);
    for (int64_t l = 0; l < L && i + l < end && (a.v_response || v_code); ++l) {
      S of_one[kResponses];
      for (int k = 0; k < kResponses; ++k) of_one[k] = v_r[k][l];
      response_backward<S, L>(a, i + l, of_one, v_code);
    }
  }
}

}  // namespace
