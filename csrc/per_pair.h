// The op on pairs of pixels: how embeddings tell segments apart.
#pragma once

#include "kernel_args.h"
#include "tensors.h"

namespace gsfields {

struct Contrast {
  Tensor features, others, segments, other_segments;
  bool squared, two_exponentials, own_partner;
  double temperature, partner_temperature;
  Like like;

  Contrast(const Tensor& features_, const Tensor& others_, const Tensor& segments_, const Tensor& other_segments_,
           bool squared_, bool two_exponentials_, double temperature_, double partner_temperature_, bool own_partner_)
      : squared(squared_),
        two_exponentials(two_exponentials_),
        own_partner(own_partner_),
        temperature(temperature_),
        partner_temperature(partner_temperature_),
        like(features_, "features") {
    features = like(features_, "features", {{"P"}, {"D"}});
    const Dim P{"P", features.size(0)}, D{"D", features.size(1)};
    others = like(others_, "others", {{"Q"}, D});
    check(D.size >= 1, "features has 0 numbers per pixel, but must have at least 1");
    check(own_partner || others.size(0) == P.size, "own_partner is false, which needs others to be the features, but ",
          "there are ", others.size(0), " and ", P.size);
    segments = like.of(segments_, "segments", ScalarType::Int, {P});
    other_segments = like.of(other_segments_, "other_segments", ScalarType::Int, {{"Q", others.size(0)}});
    check(temperature > 0, "temperature is ", temperature, ", but must be positive");
    check(partner_temperature > 0, "partner_temperature is ", partner_temperature, ", but must be positive");
  }

  // On the CPU, where what pads the others has segment -1.
  void check_segments() const {
    const auto least = [](const Tensor& t) {
      const int32_t* at = in<int32_t>(t);
      return t.numel() ? *std::min_element(at, at + t.numel()) : 0;
    };
    check(least(segments) >= 0, "segments must be 0 or above, but holds ", least(segments));
    check(least(other_segments) >= 0, "other_segments must be 0 or above, but holds ", least(other_segments));
  }

  template <class S>
  ContrastArgs<S> args() const {
    ContrastArgs<S> a{};
    a.pixels = features.size(0), a.others = others.size(0), a.dim = features.size(1);
    a.features = in<S>(features), a.other_features = in<S>(others);
    a.segments = in<int32_t>(segments), a.other_segments = in<int32_t>(other_segments);
    a.squared = squared, a.two_exponentials = two_exponentials, a.own_partner = own_partner;
    a.sharpness = S(1 / temperature), a.partner_sharpness = S(1 / partner_temperature);
    return a;
  }
};

template <class Backend>
Two contrast(const Tensor& features, const Tensor& others, const Tensor& segments, const Tensor& other_segments,
             bool squared, bool two_exponentials, double temperature, double partner_temperature, bool own_partner) {
  const Contrast c(features, others, segments, other_segments, squared, two_exponentials, temperature,
                   partner_temperature, own_partner);
  if constexpr (Backend::kOnHost) c.check_segments();
  const Tensor losses = make(c.features, {c.features.size(0)}), logsums = make(c.features, {c.features.size(0), 2});
  with_scalar(c.like, [&](auto s) {
    using S = decltype(s);
    auto a = c.args<S>();
    a.losses = out<S>(losses), a.logsums = out<S>(logsums);
    if (losses.numel()) Backend::contrast(c, a, false);
  });
  return {losses, logsums};
}

template <class Backend>
Two contrast_backward(const Tensor& features, const Tensor& others, const Tensor& segments,
                      const Tensor& other_segments, const Tensor& logsums_, const Tensor& v_losses_, bool squared,
                      bool two_exponentials, double temperature, double partner_temperature, bool own_partner,
                      bool to_others) {
  const Contrast c(features, others, segments, other_segments, squared, two_exponentials, temperature,
                   partner_temperature, own_partner);
  if constexpr (Backend::kOnHost) c.check_segments();
  const Dim P{"P", c.features.size(0)};
  const Tensor logsums = c.like(logsums_, "logsums", {P, {"2", 2}}), v_losses = c.like(v_losses_, "v_losses", {P});
  const int64_t Q = c.others.size(0), D = c.features.size(1);
  const Tensor v_features = make(c.features, {P.size, D}), v_others = make(c.features, {to_others ? Q : 0, D});
  with_scalar(c.like, [&](auto s) {
    using S = decltype(s);
    auto a = c.args<S>();
    a.logsums = const_cast<S*>(in<S>(logsums)), a.v_losses = in<S>(v_losses);
    a.v_features = out<S>(v_features), a.v_other_features = to_others ? out<S>(v_others) : nullptr;
    Backend::contrast(c, a, true);
  });
  return {v_features, v_others};
}

}  // namespace gsfields
