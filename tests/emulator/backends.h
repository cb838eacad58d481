// Stages of the kernels as small tests run them, on either backend: the CPU's in float64 and CUDA's, emulated, in
// float32, with arrays of exactly the size the interface asks for, which start as garbage. For scenes.cpp.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/stages.h"
#include "cuda/kernels.h"

namespace {

using namespace gsfields;

int failures = 0;

void expect(bool good, const std::string& what) {
  if (!good) ++failures, std::printf("wrong: %s\n", what.c_str());
}

// An exact-size array (never null, also when empty) that starts as garbage: every byte 0xEE.
template <class T>
class Array {
 public:
  explicit Array(int64_t n = 0) : n_(n), data_(new T[size_t(n)]) {
    if (n) std::memset(static_cast<void*>(data_.get()), 0xEE, size_t(n) * sizeof(T));
  }
  template <class From>
  explicit Array(const std::vector<From>& from) : Array(int64_t(from.size())) {
    std::copy(from.begin(), from.end(), data_.get());
  }
  T* get() const { return data_.get(); }
  std::vector<double> numbers() const { return {data_.get(), data_.get() + n_}; }

 private:
  int64_t n_;
  std::unique_ptr<T[]> data_;
};

using Numbers = std::vector<float>;                // what a stage is given, the same on both backends
using Results = std::vector<std::vector<double>>;  // what it makes

struct Random {
  std::mt19937 engine;
  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine); }
  Numbers numbers(int64_t n, float low, float high) {
    Numbers x(static_cast<size_t>(n));
    for (float& number : x) number = uniform(low, high);
    return x;
  }
};

// ---- the two backends ----------------------------------------------------------------------------------------------

struct Cpu {
  using Scalar = double;
  static constexpr auto kThreads = [](const std::function<void(int)>& f) { f(0); };
  static cpu::Threads threads() { return {1, kThreads}; }
  static const cpu::Kernels<double>& kernels() { return cpu::kernels().of<double>(); }

  static void project(const ProjectArgs<double>& a) { kernels().project(a, 0, a.n); }
  static int64_t projection_parts(int64_t n) { return (n + cpu::kProjectChunk - 1) / cpu::kProjectChunk; }
  static void project_backward(const ProjectBackwardArgs<double>& a, double* v_viewmats) {
    const int64_t n = a.forward.n, views = a.forward.views;
    for (int64_t i = 0; i < n; i += cpu::kProjectChunk)
      kernels().project_backward(a, i, std::min(i + cpu::kProjectChunk, n));
    std::fill(v_viewmats, v_viewmats + 16 * views, 0.0);
    for (int64_t k = 0; k < projection_parts(n) * views; ++k)  // of R, then of t
      for (int i = 0; i < 12; ++i)
        v_viewmats[k % views * 16 + (i < 9 ? i / 3 * 4 + i % 3 : (i - 9) * 4 + 3)] += a.v_views[12 * k + i];
  }
  static void sh(const ShArgs<double>& a, bool backward) {
    (backward ? kernels().sh_backward : kernels().sh)(a, 0, a.n);
  }
  static void respond(const RespondArgs<double>& a) { kernels().respond(a, 0, a.n); }
  static int64_t response_parts(int64_t n) { return (n + cpu::kRespondChunk - 1) / cpu::kRespondChunk; }
  static void respond_backward(const RespondBackwardArgs<double>& a, double* v_code) {
    const int64_t rank = a.forward.rank;
    kernels().respond_backward(a, 0, a.forward.n);
    std::fill(v_code, v_code + rank, 0.0);
    for (int64_t k = 0; k < response_parts(a.forward.n) * rank; ++k) v_code[k % rank] += a.v_codes[k];
  }
  static Array<int32_t> bin(const BinInput<double>& in, int64_t* offsets) {
    const cpu::Threads one = threads();
    cpu::Binning<double> binning(in, offsets, one);
    Array<int32_t> ids(binning.total());
    binning.fill(ids.get());
    return ids;
  }
  static void blend(const BlendInput<double>& in, void* image, double* transmittance, int32_t* last) {
    cpu::blend(in, image, transmittance, last, threads());
  }
  static void blend_backward(const BlendInput<double>& in, const double*, const int32_t* last,
                             const BlendGrads<double>& grads) {
    cpu::blend_backward(in, cpu::used_lists(in, last).data(), grads, threads());
  }
  static void lift(const BlendInput<double>& in, const LiftArgs<double>& a) { cpu::lift(in, a, threads()); }
  static void seen_pairs(const BlendInput<double>& in, bool* seen) { cpu::seen_pairs(in, seen, threads()); }
  static void ssim(const SsimArgs<double>& a, int64_t images, bool backward) {
    cpu::ssim(a, images, backward, threads());
  }
  static void contrast(const ContrastArgs<double>& a, bool backward) { cpu::contrast(a, backward, threads()); }
  static void adam_rows(const AdamArgs<double>& a, int64_t rows) { kernels().adam_rows(a, 0, rows); }
  static void follow_rows(const FollowArgs<double>& a, int64_t rows) { kernels().follow_rows(a, 0, rows); }
  static void sum_bags(const BagArgs<double>& a, int64_t bags) { kernels().sum_bags(a, 0, bags); }
};

struct Cuda {
  using Scalar = float;
  static inline const auto stream = reinterpret_cast<cudaStream_t>(7);
  static inline std::vector<std::unique_ptr<char[]>> scratch;
  static void* allocate(int64_t bytes) {
    scratch.push_back(std::make_unique_for_overwrite<char[]>(size_t(bytes)));
    if (bytes) std::memset(scratch.back().get(), 0xEE, size_t(bytes));
    return scratch.back().get();
  }
  static void finish(cudaError_t error) {
    expect(error == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess, emulator::last_report());
    scratch.clear();
  }

  static void project(const ProjectArgs<float>& a) { finish(cuda::project(a, stream)); }
  static int64_t projection_parts(int64_t n) { return cuda::projection_parts(n); }
  static void project_backward(const ProjectBackwardArgs<float>& a, float* v_viewmats) {
    finish(cuda::project_backward(a, v_viewmats, stream));
  }
  static void sh(const ShArgs<float>& a, bool backward) {
    finish(backward ? cuda::sh_backward(a, stream) : cuda::sh(a, stream));
  }
  static void respond(const RespondArgs<float>& a) { finish(cuda::respond(a, stream)); }
  static int64_t response_parts(int64_t n) { return cuda::response_parts(n); }
  static void respond_backward(const RespondBackwardArgs<float>& a, float* v_code) {
    finish(cuda::respond_backward(a, v_code, stream));
  }
  static Array<int32_t> bin(const BinInput<float>& in, int64_t* offsets) {
    Array<int32_t> ids;
    const auto make_ids = [&](int64_t pairs) {
      ids = Array<int32_t>(pairs);
      return ids.get();
    };
    finish(cuda::bin<float>(in, offsets, make_ids, allocate, stream));
    return ids;
  }
  static void blend(const BlendInput<float>& in, void* image, float* transmittance, int32_t* last) {
    finish(cuda::blend(in, image, transmittance, last, allocate, stream));
  }
  static void blend_backward(const BlendInput<float>& in, const float* transmittance, const int32_t* last,
                             const BlendGrads<float>& grads) {
    finish(cuda::blend_backward(in, transmittance, last, grads, allocate, stream));
  }
  static void lift(const BlendInput<float>& in, const LiftArgs<float>& a) {
    finish(cuda::lift(in, a, allocate, stream));
  }
  static void seen_pairs(const BlendInput<float>& in, bool* seen) { finish(cuda::seen_pairs(in, seen, stream)); }
  static void ssim(const SsimArgs<float>& a, int64_t images, bool backward) {
    finish(cuda::ssim(a, images, backward, stream));
  }
  static void contrast(const ContrastArgs<float>& a, bool backward) { finish(cuda::contrast(a, backward, stream)); }
  static void adam_rows(const AdamArgs<float>& a, int64_t rows) { finish(cuda::adam_rows(a, rows, stream)); }
  static void follow_rows(const FollowArgs<float>& a, int64_t rows) { finish(cuda::follow_rows(a, rows, stream)); }
  static void sum_bags(const BagArgs<float>& a, int64_t bags) { finish(cuda::sum_bags(a, bags, stream)); }
};

}  // namespace
