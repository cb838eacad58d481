// Structural similarity of images that are zero outside, and its derivative (csrc/math/ssim.h). Bands of rows: filter
// each row horizontally, then combine eleven filtered rows. Included by isa.cpp.
#pragma once

#include "../math/ssim.h"
#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

constexpr int kHalf = math::kSsimHalf;

// Filters n elements with `step` from tap to tap, `in` being readable 5·step to either side.
template <class S>
GSF_HD void filter(const S* in, int64_t n, int64_t step, S* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = math::ssim_filter<S>([=](int k) __attribute__((always_inline)) { return in[i + k * step]; });
}

// Scratch: Q quantities filtered along x for the rows of a band with their margins, one padded row, one result row
// per quantity. A row is width·channels long; the pad holds 5 pixels either side.
template <class S>
struct SsimScratch {
  static constexpr int quantities = 4;
  S *rows, *padded, *result;
  int64_t row, stride;
  SsimScratch(void* memory, const SsimArgs<S>& a, int64_t band) {
    row = a.row, stride = a.row * quantities;
    rows = static_cast<S*>(memory);
    padded = rows + (band + 2 * kHalf) * stride;
    result = padded + row + 2 * kHalf * a.channels;
  }
};

template <class S>
int64_t ssim_scratch(int64_t row, int64_t band) {
  // channels <= row, so 11 rows hold any padded row.
  return int64_t(sizeof(S)) * ((band + 2 * kHalf + 1) * SsimScratch<S>::quantities + math::kSsimWindow) * row;
}

// Filters `value(i)` of image row y along x into quantity q of scratch row `slot`; rows outside the image are zero.
template <class S, class F>
GSF_HD void filter_row(const SsimArgs<S>& a, SsimScratch<S>& s, int64_t y, int64_t slot, int q, F value) {
  const int64_t row = s.row, pad = kHalf * a.channels, at = y * row;
  S *out = s.rows + slot * s.stride + q * row, *__restrict__ padded = s.padded;
  if (y < 0 || y >= a.height) {
    for (int64_t i = 0; i < row; ++i) out[i] = 0;
    return;
  }
  for (int64_t i = 0; i < pad; ++i) padded[i] = padded[pad + row + i] = 0;
  for (int64_t i = 0; i < row; ++i) padded[pad + i] = value(at + i);
  filter(padded + pad, row, a.channels, out);
}

template <class S>
void ssim_rows(const SsimArgs<S>& a, int64_t begin, int64_t end, void* scratch) {
  SsimScratch<S> s(scratch, a, end - begin);
  const S *const p = a.image1, *const t = a.image2;
  for (int64_t y = begin - kHalf; y < end + kHalf; ++y) {
    const int64_t slot = y - begin + kHalf;
    filter_row(a, s, y, slot, 0, [=](int64_t i) __attribute__((always_inline)) { return p[i]; });
    filter_row(a, s, y, slot, 1, [=](int64_t i) __attribute__((always_inline)) { return t[i]; });
    filter_row(a, s, y, slot, 2, [=](int64_t i) __attribute__((always_inline)) { return p[i] * p[i] + t[i] * t[i]; });
    filter_row(a, s, y, slot, 3, [=](int64_t i) __attribute__((always_inline)) { return p[i] * t[i]; });
  }
  for (int64_t y = begin; y < end; ++y) {
    filter(s.rows + (y - begin + kHalf) * s.stride, s.stride, s.stride, s.result);
    const int64_t row = s.row, at = y * row;
    const S *mu1 = s.result, *mu2 = mu1 + row, *squares = mu2 + row, *product = squares + row;
    S* __restrict__ map = a.map + at, * __restrict__ d_mu = a.d_mu + at, * __restrict__ d_var = a.d_var + at;
    S* __restrict__ d_cov = a.d_cov + at;
    for (int64_t i = 0; i < row; ++i) {
      const auto point = math::ssim_point(mu1[i], mu2[i], squares[i], product[i]);
      map[i] = point.map, d_mu[i] = point.d_mu, d_var[i] = point.d_var, d_cov[i] = point.d_cov;
    }
  }
}

template <class S>
void ssim_backward_rows(const SsimArgs<S>& a, int64_t begin, int64_t end, void* scratch) {
  SsimScratch<S> s(scratch, a, end - begin);
  const S *const v = a.v_map, *const mu = a.d_mu, *const var = a.d_var, *const cov = a.d_cov;
  for (int64_t y = begin - kHalf; y < end + kHalf; ++y) {
    const int64_t slot = y - begin + kHalf;
    filter_row(a, s, y, slot, 0, [=](int64_t i) __attribute__((always_inline)) { return v[i] * mu[i]; });
    filter_row(a, s, y, slot, 1, [=](int64_t i) __attribute__((always_inline)) { return v[i] * var[i]; });
    filter_row(a, s, y, slot, 2, [=](int64_t i) __attribute__((always_inline)) { return v[i] * cov[i]; });
  }
  for (int64_t y = begin; y < end; ++y) {
    filter(s.rows + (y - begin + kHalf) * s.stride, 3 * s.row, s.stride, s.result);
    for (int64_t i = 0; i < s.row; ++i) {
      const int64_t at = y * s.row + i;
      a.v_image1[at] = s.result[i] + 2 * a.image1[at] * s.result[s.row + i] + a.image2[at] * s.result[2 * s.row + i];
    }
  }
}

}  // namespace
