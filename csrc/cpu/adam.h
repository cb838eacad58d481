// A step of Adam (Kingma & Ba 2015, algorithm 1) on some rows of a table. Included by isa.cpp.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

constexpr int kAdamAhead = 4;  // how many rows ahead to fetch, for a processor knows only what follows within a row

template <class S, int L>
void adam_rows(const AdamArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  constexpr int kLine = 64 / int(sizeof(S));
  const S beta1 = a.beta1, beta2 = a.beta2;
  const int64_t fetched = math::min(a.dim, int64_t(4 * kLine));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t ahead = a.rows[math::min(i + kAdamAhead, end - 1)];
    __builtin_prefetch(a.powers + 2 * ahead, 1);
    for (int64_t k = ahead * a.dim; k < ahead * a.dim + fetched; k += kLine)
      __builtin_prefetch(a.table + k, 1), __builtin_prefetch(a.first + k, 1), __builtin_prefetch(a.second + k, 1);
    S* const powers = a.powers + 2 * a.rows[i];
    powers[0] *= beta1, powers[1] *= beta2;
    // rate · (m / c1) / (sqrt(v / c2) + eps), c = 1 - beta^steps
    const S step = a.rate / (1 - powers[0]), inv_root = 1 / math::sqrt(1 - powers[1]);
    const int64_t row = a.rows[i] * a.dim;
    S *const x = a.table + row, *const m = a.first + row, *const v = a.second + row;
    const S* const g = a.grads + i * a.dim;
    int64_t k = 0;
    for (; k + L <= a.dim; k += L) {
      const V grad = load<V>(g + k);
      const V first = load<V>(m + k) * beta1 + grad * (1 - beta1);
      const V second = load<V>(v + k) * beta2 + grad * grad * (1 - beta2);
      const V moved = load<V>(x + k) - step * first / (math::sqrt(second) * inv_root + a.eps);
      __builtin_memcpy(m + k, &first, sizeof(V));
      __builtin_memcpy(v + k, &second, sizeof(V));
      __builtin_memcpy(x + k, &moved, sizeof(V));
    }
    for (; k < a.dim; ++k) {
      m[k] = m[k] * beta1 + g[k] * (1 - beta1), v[k] = v[k] * beta2 + g[k] * g[k] * (1 - beta2);
      x[k] -= step * m[k] / (math::sqrt(v[k]) * inv_root + a.eps);
    }
  }
}

}  // namespace
