// The ops on rows of a table: a step of Adam, a moving average, and sums of bags of rows.
#pragma once

#include <algorithm>
#include <limits>

#include "kernel_args.h"
#include "tensors.h"

namespace gsfields {

// Refuses numbers outside [low, high), where nothing else would.
template <class I>
void check_range(const I* numbers, int64_t count, int64_t low, int64_t high, const char* name, const char* limit) {
  I least = std::numeric_limits<I>::max(), most = std::numeric_limits<I>::min();
  for (int64_t i = 0; i < count; ++i) least = std::min(least, numbers[i]), most = std::max(most, numbers[i]);
  if (count == 0) return;
  check(most < high, name, " holds ", most, ", but must be below ", limit, "=", high);
  check(least >= low, name, " holds ", least, ", but must be at least ", low);
}

// What is written in place must be what it seems: as checked, not a copy.
inline void check_in_place(const Tensor& given, const Tensor& checked, const char* name) {
  check(checked.mutable_data_ptr() == given.mutable_data_ptr(), name, " must be contiguous");
}

template <class Backend>
void adam_rows(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& powers,
               const Tensor& rows_, const Tensor& grads_, double rate, double beta1, double beta2, double eps) {
  const Like like(table, "table");
  check_shape(table, "table", {{"N"}, {"D"}});
  const Dim N{"N", table.size(0)}, D{"D", table.size(1)};
  const Tensor rows = like.of(rows_, "rows", ScalarType::Long, {{"M"}});
  const Tensor grads = like(grads_, "grads", {{"M", rows.size(0)}, D});
  check_in_place(table, like(table, "table", {N, D}), "table");
  check_in_place(first, like(first, "first", {N, D}), "first");
  check_in_place(second, like(second, "second", {N, D}), "second");
  check_in_place(powers, like(powers, "powers", {N, {"2", 2}}), "powers");
  if constexpr (Backend::kOnHost) {
    check_range(in<int64_t>(rows), rows.size(0), 0, N.size, "rows", "N");
  }
  with_scalar(like, [&](auto s) {
    using S = decltype(s);
    const AdamArgs<S> a{N.size,         D.size,         out<S>(table),     out<S>(first),
                        out<S>(second), out<S>(powers), in<int64_t>(rows), in<S>(grads),
                        S(rate),        S(beta1),       S(beta2),          S(eps)};
    Backend::adam_rows(table, a, rows.size(0));
  });
}

template <class Backend>
Tensor follow_rows(const Tensor& fast_, const Tensor& slow, const Tensor& followed, const Tensor& rows_,
                   int64_t follows, double momentum) {
  const Like like(fast_, "fast");
  const Tensor fast = like(fast_, "fast", {{"N"}, {"D"}});
  const Dim N{"N", fast.size(0)}, D{"D", fast.size(1)};
  check_in_place(slow, like(slow, "slow", {N, D}), "slow");
  check_in_place(followed, like.of(followed, "followed", ScalarType::Int, {N}), "followed");
  const Tensor rows = like.of(rows_, "rows", ScalarType::Long, {{"M"}});
  check(follows >= 0 && follows <= INT32_MAX, "follows is ", follows, ", but must be from 0 to ", INT32_MAX);
  check(momentum >= 0 && momentum <= 1, "momentum is ", momentum, ", but must be from 0 to 1");
  if constexpr (Backend::kOnHost) check_range(in<int64_t>(rows), rows.size(0), 0, N.size, "rows", "N");
  const Tensor both = make(fast, {rows.size(0), 2 * D.size});
  with_scalar(like, [&](auto s) {
    using S = decltype(s);
    const FollowArgs<S> a{
        N.size,           D.size,      in<S>(fast), out<S>(slow), out<int32_t>(followed), in<int64_t>(rows),
        int32_t(follows), S(momentum), out<S>(both)};
    Backend::follow_rows(fast, a, rows.size(0));
  });
  return both;
}

template <class Backend>
Tensor sum_bags(const Tensor& values_, const Optional& place_, const Tensor& members_, const Tensor& shares_,
                const Tensor& ends_, const Tensor& bags_) {
  const Like like(values_, "values");
  const Tensor values = like(values_, "values", {{"M"}, {"C"}});
  const int64_t n = values.size(0), dim = values.size(1);
  const Optional place = place_ ? Optional(like.of(*place_, "place", ScalarType::Int, {{"N"}})) : std::nullopt;
  const Tensor members = like.of(members_, "members", ScalarType::Int, {{"K"}});
  const int64_t things = place ? place->size(0) : n, listed = members.size(0);
  const Tensor shares = like(shares_, "shares", {{"K", listed}});
  const Tensor ends = like.of(ends_, "ends", ScalarType::Long, {{"T"}});
  const Tensor bags = like.of(bags_, "bags", ScalarType::Long, {{"B"}});
  if constexpr (Backend::kOnHost) {
    if (place) check_range(in<int32_t>(*place), things, INT32_MIN, n, "place", "M");
    check_range(in<int32_t>(members), listed, 0, things, "members", "N");
    check_range(in<int64_t>(bags), bags.size(0), 0, ends.size(0), "bags", "T");
    const int64_t* const end = in<int64_t>(ends);
    for (int64_t i = 0, count = ends.size(0); i < count; ++i)
      check(end[i] >= (i ? end[i - 1] : 0) && end[i] <= listed, "ends holds ", end[i], " at ", i,
            ", but must not fall, and be at most K=", listed);
  }
  const Tensor sums = make(values, {bags.size(0), dim});
  with_scalar(like, [&](auto s) {
    using S = decltype(s);
    const BagArgs<S> a{dim,
                       listed,
                       in<S>(values),
                       place ? in<int32_t>(*place) : nullptr,
                       in<int32_t>(members),
                       in<S>(shares),
                       in<int64_t>(ends),
                       in<int64_t>(bags),
                       out<S>(sums)};
    Backend::sum_bags(values, a, bags.size(0));
  });
  return sums;
}

}  // namespace gsfields
