// The binding of csrc/cuda as the ops gsfields_emulated::*, which run the CUDA kernels on the CPU on CPU tensors.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <stdexcept>

#define GSF_CUDA_DEVICE_H  // instead of csrc/cuda/device.h
namespace gsfields_emulated::cuda {

// Work joins a stream that nobody else knows; at the end of the call all of it has run.
class Device {
 public:
  explicit Device(const torch::stable::Tensor&) : calls_under_way_(std::uncaught_exceptions()) {}
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() noexcept(false) {
    const bool good = emulator::drain() == cudaSuccess;
    if (!good && std::uncaught_exceptions() == calls_under_way_) throw std::runtime_error(emulator::last_report());
  }

  cudaStream_t stream() const { return reinterpret_cast<cudaStream_t>(0x57ea); }

 private:
  int calls_under_way_;
};

}  // namespace gsfields_emulated::cuda

#define gsfields gsfields_emulated  // the namespace in C++ and of the ops
#define CUDA CPU                    // the dispatch key
#include "cuda/binding.cpp"
