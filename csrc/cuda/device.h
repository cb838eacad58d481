// The device and the stream that torch has chosen for a call. torch's stable ABI gives the stream through a function
// of libtorch_cuda, which is looked up at run time, so that this library links and loads without it.
#ifndef GSF_CUDA_DEVICE_H  // not #pragma once: the tests run the binding on the CPU with a device of their own
#define GSF_CUDA_DEVICE_H

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

namespace gsfields::cuda {

// Makes the tensor's device the current one for as long as this lives.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& t)
      : current_stream_(find_current_stream()), index_(t.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    if (current_stream_(index_, &stream) != AOTI_TORCH_SUCCESS)
      throw std::runtime_error("torch could not tell the current stream of CUDA device " + std::to_string(index_));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

  static CurrentStream find_current_stream() {
    static const CurrentStream found = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
      return library ? CurrentStream(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    if (!found)
      throw std::runtime_error(
          "the CUDA kernels of gsfields need a torch with CUDA 2.10 or later, but the torch that is running has no "
          "aoti_torch_get_current_cuda_stream");
    return found;
  }

  CurrentStream current_stream_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace gsfields::cuda

#endif
