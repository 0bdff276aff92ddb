// What a call needs from the GPU and from torch: device checks, the device guard, the stream, the
// workspace size and kernel launches. Tests run the same code on the host, with a header of the
// same name in place of this one (tests/cuda_on_host/cuda/launch.h).
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "binding/failures.h"
#include "cuda/plan.h"

// Registers the operators of this extension.
#define CLASP_CUDA_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CUDA, m)

namespace clasp::cuda {

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline bool is_on_gpu(const torch::stable::Tensor& tensor) {
  return tensor.is_cuda();
}

inline int64_t workspace_bytes() {
  return kWorkspaceBytes;
}

// torch's current stream of a device.
class Stream {
 public:
  explicit Stream(int32_t device) {
    void* stream;
    check_torch(aoti_torch_get_current_cuda_stream(device, &stream), "get_current_cuda_stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Launches the kernel; the grid must not be empty.
  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), unsigned num_blocks, int num_threads,
              const Arguments&... arguments) const {
    kernel<<<num_blocks, num_threads, 0, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  cudaStream_t stream_;
};

}  // namespace clasp::cuda
