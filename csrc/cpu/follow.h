// Fast rows of a table beside their slow copies, which catch up first. Included by isa.cpp.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

constexpr int kFollowAhead = 8;  // how many rows ahead to fetch

template <class S, int L>
void follow_rows(const FollowArgs<S>& a, int64_t begin, int64_t end) {
  using V = typename Lanes<S, L>::V;
  constexpr int kLine = 64 / int(sizeof(S));
  const int64_t fetched = math::min(a.dim, int64_t(4 * kLine));
  int32_t known = 0;  // rows side by side have often been seen together
  S left = 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = a.rows[i], ahead = a.rows[math::min(i + kFollowAhead, end - 1)];
    __builtin_prefetch(a.followed + ahead, 1);
    for (int64_t k = ahead * a.dim; k < ahead * a.dim + fetched; k += kLine)
      __builtin_prefetch(a.fast + k), __builtin_prefetch(a.slow + k, 1);
    const int32_t missed = a.follows - a.followed[row];
    if (missed != known) known = missed, left = math::power(a.momentum, missed);
    a.followed[row] = a.follows;
    const S* const fast = a.fast + row * a.dim;
    S *const slow = a.slow + row * a.dim, *const out = a.both + 2 * i * a.dim;
    const auto follow = [&](auto from, auto to) { return missed > 0 ? to + left * (from - to) : from; };
    int64_t k = 0;
    for (; k + L <= a.dim; k += L) {
      const V to = load<V>(fast + k), caught_up = follow(load<V>(slow + k), to);
      __builtin_memcpy(slow + k, &caught_up, sizeof(V));
      __builtin_memcpy(out + k, &to, sizeof(V)), __builtin_memcpy(out + a.dim + k, &caught_up, sizeof(V));
    }
    for (; k < a.dim; ++k) out[k] = fast[k], out[a.dim + k] = slow[k] = follow(slow[k], fast[k]);
  }
}

}  // namespace
