// Comes before select_tokens.cu, so that it takes tensors on the CPU.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda_runtime.h"

#undef STD_CUDA_CHECK
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_CHECK(call) STD_TORCH_CHECK((call) == 0, "the CUDA runtime failed")
#define STD_CUDA_KERNEL_LAUNCH_CHECK() static_cast<void>(0)

inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

namespace simt {

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
  ~DeviceGuard() {}
};

}  // namespace simt
