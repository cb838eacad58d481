// Argument checks: each failure is one sentence that names the argument, what was given and what is allowed, thrown
// as std::invalid_argument (ValueError in Python) before any kernel runs.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace gsfields {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream message;
  (message << ... << args);
  throw std::invalid_argument(message.str());
}

template <class... Args>
void check(bool ok, const Args&... args) {
  if (!ok) fail(args...);
}

inline std::string shape_string(const Tensor& t) {
  std::ostringstream out;
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << "]";
  return out.str();
}

// One dimension of an expected shape: its name in messages, and its size or -1 for any.
struct Dim {
  const char* name;
  int64_t size = -1;
};

inline void check_shape(const Tensor& t, const char* name, const std::vector<Dim>& dims) {
  bool ok = t.dim() == int64_t(dims.size());
  int64_t i = 0;
  if (ok)
    for (const Dim& d : dims) ok &= d.size < 0 || t.size(i) == d.size, ++i;
  if (ok) return;
  std::ostringstream wanted;
  i = 0;
  for (const Dim& d : dims) {
    wanted << (i++ ? ", " : "") << d.name;
    if (d.size >= 0 && std::string(d.name) != std::to_string(d.size)) wanted << "=" << d.size;
  }
  fail(name, " has shape ", shape_string(t), ", but must be [", wanted.str(), "]");
}

// The dtype and device of the first tensor of a call, which the others must share.
class Like {
 public:
  Like(const Tensor& first, const char* name) : first_(first), name_(name), dtype_(first.scalar_type()) {
    check(dtype_ == ScalarType::Float || dtype_ == ScalarType::Double, name, " has dtype ",
          torch::headeronly::toString(dtype_), ", but must be float32 or float64");
  }
  bool is_double() const { return dtype_ == ScalarType::Double; }
  ScalarType dtype() const { return dtype_; }

  // A contiguous tensor of this call's dtype and the given shape.
  Tensor operator()(const Tensor& t, const char* name, const std::vector<Dim>& dims) const {
    check_shape(t, name, dims);
    check(t.scalar_type() == dtype_, name, " has dtype ", torch::headeronly::toString(t.scalar_type()), ", but ", name_,
          " has ", torch::headeronly::toString(dtype_), ", and both must be the same");
    return on_device(t, name);
  }
  // The same for tensors of another dtype, such as indices.
  Tensor of(const Tensor& t, const char* name, ScalarType dtype, const std::vector<Dim>& dims) const {
    check_shape(t, name, dims);
    check(t.scalar_type() == dtype, name, " has dtype ", torch::headeronly::toString(t.scalar_type()), ", but must be ",
          torch::headeronly::toString(dtype));
    return on_device(t, name);
  }

 private:
  Tensor on_device(const Tensor& t, const char* name) const {
    check(t.device() == first_.device(), name, " and ", name_, " are on different devices, but must be on the same");
    return torch::stable::contiguous(t);
  }
  const Tensor& first_;
  const char* name_;
  ScalarType dtype_;
};

// Gaussians and channels are counted in 32 bits inside the kernels, pixels along a side in 16.
constexpr int64_t kMaxGaussians = (int64_t(1) << 31) - 1;
constexpr int64_t kMaxSide = 65535;

inline void check_image_size(int64_t width, int64_t height) {
  check(width >= 1 && width <= kMaxSide, "width is ", width, ", but must be between 1 and ", kMaxSide);
  check(height >= 1 && height <= kMaxSide, "height is ", height, ", but must be between 1 and ", kMaxSide);
}

}  // namespace gsfields
