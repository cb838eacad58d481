// The op on rows of a table: a step of Adam.
#pragma once

#include "kernel_args.h"
#include "tensors.h"

namespace gsfields {

template <class Backend>
void adam_rows(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& powers,
               const Tensor& rows_, const Tensor& grads_, double rate, double beta1, double beta2, double eps) {
  const Like like(table, "table");
  check_shape(table, "table", {{"N"}, {"D"}});
  const Dim N{"N", table.size(0)}, D{"D", table.size(1)};
  const Tensor rows = like.of(rows_, "rows", ScalarType::Long, {{"M"}});
  const Tensor grads = like(grads_, "grads", {{"M", rows.size(0)}, D});
  // Written in place, so they must be what they seem
  const auto in_place = [&](const Tensor& t, const char* name, const std::vector<Dim>& dims) {
    check(like(t, name, dims).mutable_data_ptr() == t.mutable_data_ptr(), name, " must be contiguous");
  };
  in_place(table, "table", {N, D}), in_place(first, "first", {N, D}), in_place(second, "second", {N, D});
  in_place(powers, "powers", {N, {"2", 2}});
  if constexpr (Backend::kOnHost) {
    const int64_t* row = in<int64_t>(rows);
    for (int64_t i = 0; i < rows.size(0); ++i)
      check(row[i] >= 0 && row[i] < N.size, "rows holds ", row[i], ", but must be in [0, N=", N.size, ")");
  }
  with_scalar(like, [&](auto s) {
    using S = decltype(s);
    const AdamArgs<S> a{N.size,         D.size,         out<S>(table),     out<S>(first),
                        out<S>(second), out<S>(powers), in<int64_t>(rows), in<S>(grads),
                        S(rate),        S(beta1),       S(beta2),          S(eps)};
    Backend::adam_rows(table, a, rows.size(0));
  });
}

}  // namespace gsfields
