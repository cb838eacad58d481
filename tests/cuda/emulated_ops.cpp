// The binding and the kernels of csrc/cuda as the ops gsfields_emulated::*, which run on the CPU on CPU tensors.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define GSF_CUDA_DEVICE_H  // instead of csrc/cuda/device.h
namespace gsfields_emulated::cuda {
struct Device {
  explicit Device(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};
}  // namespace gsfields_emulated::cuda

#define gsfields gsfields_emulated  // the namespace in C++ and of the ops
#define CUDA CPU                    // the dispatch key
#include "cuda/binding.cpp"
#include "cuda/project.cu"
#include "cuda/sh.cu"

extern "C" __attribute__((visibility("default"))) void set_reversed(bool reversed) { emulator::reversed = reversed; }
