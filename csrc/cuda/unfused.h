// A number whose products the compiler does not fuse with sums. Which products it fuses can differ from kernel to
// kernel, and so can the last bit; two kernels that compute with these numbers what csrc/math says get the same bits.
#pragma once

#include "../math/common.h"

namespace gsfields::cuda {

GSF_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

GSF_HD double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class S>
class Unfused {
 public:
  Unfused() = default;
  GSF_HD Unfused(S value) : value_(value) {}
  GSF_HD explicit operator int() const { return int(value_); }

  GSF_HD Unfused operator-() const { return -value_; }
  friend GSF_HD Unfused operator+(Unfused a, Unfused b) { return a.value_ + b.value_; }
  friend GSF_HD Unfused operator-(Unfused a, Unfused b) { return a.value_ - b.value_; }
  friend GSF_HD Unfused operator*(Unfused a, Unfused b) { return rounded_product(a.value_, b.value_); }
  friend GSF_HD Unfused operator/(Unfused a, Unfused b) { return a.value_ / b.value_; }
  friend GSF_HD bool operator<(Unfused a, Unfused b) { return a.value_ < b.value_; }
  friend GSF_HD bool operator>(Unfused a, Unfused b) { return a.value_ > b.value_; }
  friend GSF_HD bool operator>=(Unfused a, Unfused b) { return a.value_ >= b.value_; }

  friend GSF_HD Unfused fma(Unfused a, Unfused b, Unfused c) { return math::fma(a.value_, b.value_, c.value_); }
  friend GSF_HD Unfused sqrt(Unfused x) { return math::sqrt(x.value_); }
  friend GSF_HD Unfused log(Unfused x) { return math::log(x.value_); }
  friend GSF_HD Unfused floor(Unfused x) { return math::floor(x.value_); }
  friend GSF_HD Unfused ceil(Unfused x) { return math::ceil(x.value_); }

 private:
  S value_;
};

}  // namespace gsfields::cuda
