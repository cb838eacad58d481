// Sums of bags of rows. Included by isa.cpp.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

constexpr int kBagVectors = 4;  // of channels that are summed in one pass over the members
constexpr int kBagAhead = 8;    // how many members ahead to fetch

// Columns [column, column + VC · L) of one bag, whose members are [first, last).
template <int VC, class S, int L>
GSF_HD void sum_bag(const BagArgs<S>& a, int64_t first, int64_t last, int64_t column, S* out) {
  using V = typename Lanes<S, L>::V;
  const auto row_of = [&](int64_t k) { return a.place ? a.place[a.members[k]] : a.members[k]; };
  V acc[VC] = {};
  for (int64_t k = first; k < last; ++k) {
    // What follows is most often asked for, too
    const int32_t row = row_of(k), ahead = row_of(k + kBagAhead < a.listed ? k + kBagAhead : k);
    for (int c = 0; c < VC && ahead >= 0; ++c) __builtin_prefetch(a.values + ahead * a.dim + column + c * L);
    if (row < 0) continue;
    const S* const values = a.values + row * a.dim + column;
    for (int c = 0; c < VC; ++c) acc[c] += a.shares[k] * load<V>(values + c * L);
  }
  __builtin_memcpy(out + column, acc, sizeof(acc));
}

template <class S, int L>
void sum_bags(const BagArgs<S>& a, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t bag = a.bags[b], first = bag ? a.ends[bag - 1] : 0, last = a.ends[bag];
    S* const out = a.sums + b * a.dim;
    int64_t c = 0;
    for (; c + kBagVectors * L <= a.dim; c += kBagVectors * L) sum_bag<kBagVectors, S, L>(a, first, last, c, out);
    for (; c + L <= a.dim; c += L) sum_bag<1, S, L>(a, first, last, c, out);
    for (; c < a.dim; ++c) sum_bag<1, S, 1>(a, first, last, c, out);
  }
}

}  // namespace
