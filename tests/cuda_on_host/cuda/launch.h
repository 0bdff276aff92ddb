// Replaces csrc/cuda/launch.h: CPU tensors count as GPU tensors, and a launch runs on the host with
// one fiber per thread. Environment variables describe the GPU and are read at every call.
// SIMT_ORDER is the order of threads and blocks (forwards, backwards or shuffled), and
// SIMT_WORKSPACE_BYTES the memory limit of a call.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "cuda/plan.h"

#define CLASP_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(SIMT_LIBRARY, CPU, m)

namespace clasp::cuda {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
  ~DeviceGuard() {}
};

inline bool is_on_gpu(const torch::stable::Tensor& tensor) {
  return tensor.is_cpu();
}

inline int64_t workspace_bytes() {
  const char* bytes = std::getenv("SIMT_WORKSPACE_BYTES");
  return bytes == nullptr ? kWorkspaceBytes : std::atoll(bytes);
}

class Stream {
 public:
  explicit Stream(int32_t) {}

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), unsigned num_blocks, int num_threads,
              const Arguments&... arguments) const {
    if (num_blocks == 0) simt::fail("an empty grid");
    simt::launch(num_blocks, num_threads, [&] { kernel(arguments...); }, order());
  }

 private:
  static simt::Order order() {
    const char* value = std::getenv("SIMT_ORDER");
    const std::string name = value == nullptr ? "forwards" : value;
    return name == "backwards"  ? simt::Order::backwards
           : name == "shuffled" ? simt::Order::shuffled
                                : simt::Order::forwards;
  }
};

}  // namespace clasp::cuda
