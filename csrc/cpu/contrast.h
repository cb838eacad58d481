// How a pixel's embedding tells the pixels of its segment from all others: the loss of a row of pairs and its gradient
// (gsfields/losses/pairs.py). A lane holds one of the others; four rows go together, which share what is read of them.
// Included by isa.cpp.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

constexpr int kPairRows = 4;  // the last loop names them
// Sums relative to the nearest of all hold those relative to the nearest partner as long as that is no further off.
constexpr double kSafeGap = 20;

// Lanes of v where the mask is set, else 0.
template <class V, class M>
GSF_HD V kept(V v, M mask) {
  return (V)((M)v & mask);
}

// e^x, but 0 below e^-60: beside a sum of 1 that is nothing, and its products with small numbers would be denormal
// ones, which are slow.
template <class V>
GSF_HD V exponential(V x) {
  return kept(math::exp(x), x > -60);
}

template <class S, int L>
struct Pairs {
  using V = typename Lanes<S, L>::V;
  using M = typename Lanes<S, L>::M;
  using I = typename Lanes<S, L>::I;

  const ContrastArgs<S>& a;
  int64_t stride;    // others, and what pads them to whole vectors
  const S* columns;  // [D, stride] the others
  const I* ids;      // [stride] their segments, -1 beyond the last
  int64_t first;     // of the rows at hand
  int count;         // of those; the others of the four repeat the last
  S* scores;         // [kPairRows, stride] exp(s) is what a pair counts
  const S* rows[kPairRows];
  I segments[kPairRows];

  GSF_HD Pairs(const ContrastArgs<S>& args, const void* shared, void* scratch, int64_t begin, int64_t end) : a(args) {
    stride = contrast_stride(a.others);
    columns = static_cast<const S*>(shared);
    ids = reinterpret_cast<const I*>(columns + a.dim * stride);
    scores = static_cast<S*>(scratch);
    first = begin, count = int(end - begin < kPairRows ? end - begin : kPairRows);
    for (int r = 0; r < kPairRows; ++r) {
      const int64_t row = first + (r < count ? r : count - 1);
      rows[r] = a.features + row * a.dim, segments[r] = a.segments[row];
    }
  }

  GSF_HD M valid(int64_t j) const { return load<M>(ids + j) >= I(0); }
  GSF_HD M same(int r, int64_t j) const { return load<M>(ids + j) == segments[r]; }
  GSF_HD M partners(int r, int64_t j) const {
    const M mask = same(r, j);
    if (a.own_partner) return mask;
    M lane;
    for (int l = 0; l < L; ++l) lane[l] = I(j + l);
    return mask & (lane != I(first + r));
  }
  GSF_HD V sharpness(int r, int64_t j) const {
    return same(r, j) ? math::splat<V>(a.partner_sharpness) : math::splat<V>(a.sharpness);
  }

  // f(r, distances) of all rows to the L others from j on, squared if the loss wants them so.
  template <class F>
  GSF_HD void distances(int64_t j, F f) const {
    V squared[kPairRows] = {};
    for (int64_t k = 0; k < a.dim; ++k) {
      const V other = load<V>(columns + k * stride + j);
      for (int r = 0; r < kPairRows; ++r) {
        const V difference = rows[r][k] - other;
        squared[r] += difference * difference;
      }
    }
    for (int r = 0; r < kPairRows; ++r) f(r, a.squared ? squared[r] : math::sqrt(squared[r]));
  }
  GSF_HD V score(int r, V distance, int64_t j) const {
    const V x = distance * sharpness(r, j);
    return a.two_exponentials ? exponential(V(-x)) : V(-x);
  }
  // What multiplies f - f' in dx/df; 0 where the two coincide.
  GSF_HD V steepness(int r, V distance, int64_t j) const {
    const V sharp = sharpness(r, j);
    if (a.squared) return sharp + sharp;
    return distance > S(0) ? sharp / distance : V{};
  }
};

template <class S, int L>
int64_t contrast_shared(const ContrastArgs<S>& a) {
  return (a.dim + 1) * contrast_stride(a.others) * int64_t(sizeof(S));
}

template <class S, int L>
int64_t contrast_scratch(const ContrastArgs<S>& a) {
  return kPairRows * contrast_stride(a.others) * int64_t(sizeof(S));
}

// The others with a lane each.
template <class S, int L>
void contrast_prepare(const ContrastArgs<S>& a, void* shared) {
  using I = typename Lanes<S, L>::I;
  const int64_t stride = contrast_stride(a.others);
  S* columns = static_cast<S*>(shared);
  I* ids = reinterpret_cast<I*>(columns + a.dim * stride);
  for (int64_t k = 0; k < a.dim; ++k)
    for (int64_t j = 0; j < stride; ++j)
      columns[k * stride + j] = j < a.others ? a.other_features[j * a.dim + k] : S(0);
  for (int64_t j = 0; j < stride; ++j) ids[j] = j < a.others ? I(a.other_segments[j]) : I(-1);
}

template <class S>
struct Sums {
  S of_all, of_partners;
};

// Σ exp(score - shift) over all others of row r, and over its partners.
template <class S, int L>
GSF_HD Sums<S> sums_of_exponentials(const Pairs<S, L>& p, int r, S shift) {
  using V = typename Lanes<S, L>::V;
  V all{}, partners{};
  for (int64_t j = 0; j < p.stride; j += L) {
    const V counted = exponential(V(load<V>(p.scores + r * p.stride + j) - shift));
    all += kept(counted, p.valid(j)), partners += kept(counted, p.partners(r, j));
  }
  Sums<S> sums{};
  for (int l = 0; l < L; ++l) sums.of_all += all[l], sums.of_partners += partners[l];
  return sums;
}

template <class S, int L>
void contrast_rows(const ContrastArgs<S>& a, const void* shared, int64_t begin, int64_t end, void* scratch) {
  using P = Pairs<S, L>;
  using V = typename P::V;
  for (int64_t first = begin; first < end; first += kPairRows) {
    const P p(a, shared, scratch, first, end);
    const V lowest = math::splat<V>(-S(__builtin_inf()));
    V highest[kPairRows], highest_partner[kPairRows];
    typename P::M found[kPairRows] = {};
    for (int r = 0; r < kPairRows; ++r) highest[r] = highest_partner[r] = lowest;
    for (int64_t j = 0; j < p.stride; j += L)
      p.distances(j, [&](int r, V distance) __attribute__((always_inline)) {
        const V score = p.score(r, distance, j);
        __builtin_memcpy(p.scores + r * p.stride + j, &score, sizeof(V));
        highest[r] = math::max(highest[r], p.valid(j) ? score : lowest);
        const auto partners = p.partners(r, j);
        highest_partner[r] = math::max(highest_partner[r], partners ? score : lowest);
        found[r] |= partners;
      });
    for (int r = 0; r < p.count; ++r) {
      S top = highest[r][0], partner = highest_partner[r][0];
      for (int l = 1; l < L; ++l)
        top = math::max(top, highest[r][l]), partner = math::max(partner, highest_partner[r][l]);
      S* logs = a.logsums + 2 * (first + r);
      if (!any(found[r])) {  // no partner, no loss, no gradient
        logs[0] = logs[1] = S(__builtin_inf()), a.losses[first + r] = 0;
        continue;
      }
      const bool near = top - partner < S(kSafeGap);
      const Sums<S> sums = sums_of_exponentials(p, r, top);
      const S total = math::log(sums.of_all), shift = near ? top : partner;
      const S among = math::log(near ? sums.of_partners : sums_of_exponentials(p, r, partner).of_partners);
      S unless_finite = 0;  // what is not a number passes by comparisons unseen
      for (int64_t k = 0; k < a.dim; ++k) unless_finite += 0 * p.rows[r][k];
      logs[0] = top + total + unless_finite, logs[1] = shift + among;
      a.losses[first + r] = (near ? S(0) : top - partner) + total - among + unless_finite;
    }
  }
}

// v_columns [D, stride]: the gradient of the others is added to it, unless it is null.
template <class S, int L>
void contrast_backward_rows(const ContrastArgs<S>& a, const void* shared, int64_t begin, int64_t end, S* v_columns,
                            void* scratch) {
  using P = Pairs<S, L>;
  using V = typename P::V;
  constexpr int kChunk = 4;  // numbers of an embedding whose sums registers hold
  for (int64_t first = begin; first < end; first += kPairRows) {
    const P p(a, shared, scratch, first, end);
    S v_losses[kPairRows], all[kPairRows], among[kPairRows], odds[kPairRows];
    for (int r = 0; r < kPairRows; ++r) {
      const int64_t row = first + r;
      const bool counts = r < p.count && a.logsums[2 * row] != S(__builtin_inf());
      v_losses[r] = counts ? a.v_losses[row] : S(0);
      all[r] = counts ? a.logsums[2 * row] : S(0), among[r] = counts ? a.logsums[2 * row + 1] : S(0);
      odds[r] = all[r] - among[r] < S(kSafeGap) ? math::exp(all[r] - among[r]) : S(0);
    }
    // What multiplies f - f' in the gradient of a pair takes the place of its score.
    for (int64_t j = 0; j < p.stride; j += L)
      p.distances(j, [&](int r, V distance) __attribute__((always_inline)) {
        const V score = p.score(r, distance, j);
        const V share = kept(exponential(V(score - all[r])), p.valid(j));
        const V own = odds[r] > S(0) ? V(share * odds[r]) : exponential(V(score - among[r]));
        V pull = (kept(own, p.partners(r, j)) - share) * p.steepness(r, distance, j) * v_losses[r];
        if (a.two_exponentials) pull *= score;
        __builtin_memcpy(p.scores + r * p.stride + j, &pull, sizeof(V));
      });
    for (int64_t k0 = 0; k0 < a.dim; k0 += kChunk) {
      const int64_t last = a.dim - 1;
      V sums[kPairRows][kChunk] = {};
      for (int64_t j = 0; j < p.stride; j += L)
        for (int c = 0; c < kChunk; ++c) {
          const int64_t k = math::min(k0 + c, last);
          const V other = load<V>(p.columns + k * p.stride + j);
          for (int r = 0; r < kPairRows; ++r)
            sums[r][c] += load<V>(p.scores + r * p.stride + j) * (p.rows[r][k] - other);
        }
      for (int r = 0; r < p.count; ++r)
        for (int c = 0; c < kChunk && k0 + c <= last; ++c) {
          S sum = 0;
          for (int l = 0; l < L; ++l) sum += sums[r][c][l];
          a.v_features[(first + r) * a.dim + k0 + c] = sum;
        }
    }
    for (int64_t k = 0; v_columns && k < a.dim; ++k) {
      S* const v = v_columns + k * p.stride;
      const V f0 = math::splat<V>(p.rows[0][k]), f1 = math::splat<V>(p.rows[1][k]);
      const V f2 = math::splat<V>(p.rows[2][k]), f3 = math::splat<V>(p.rows[3][k]);
      for (int64_t j = 0; j < p.stride; j += L) {
        const S* pulls = p.scores + j;
        const V other = load<V>(p.columns + k * p.stride + j);
        const V sum = load<V>(v + j) + load<V>(pulls) * (other - f0) + load<V>(pulls + p.stride) * (other - f1) +
                      load<V>(pulls + 2 * p.stride) * (other - f2) + load<V>(pulls + 3 * p.stride) * (other - f3);
        __builtin_memcpy(v + j, &sum, sizeof(V));
      }
    }
  }
}

}  // namespace
