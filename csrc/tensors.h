// From torch's tensors to typed pointers and back.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "check.h"

namespace gsfields {

using Optional = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class S>
const S* in(const Tensor& t) {
  return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
const S* in(const Optional& t) {
  return t ? in<S>(*t) : nullptr;
}
template <class S>
S* out(const Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

inline Tensor make(const Tensor& like, const std::vector<int64_t>& shape,
                   std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.data(), shape.size()), dtype);
}

// f(S()) with S the scalar type of the call.
template <class F>
void with_scalar(const Like& like, const F& f) {
  if (like.is_double())
    f(double());
  else
    f(float());
}

}  // namespace gsfields
