// Temporary memory of a call, from torch's allocator, which orders its reuse by the current stream.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>

#include "binding/outputs.h"
#include "cuda/layout.h"

namespace clasp::cuda {

class Workspace {
 public:
  Workspace(int64_t bytes, Place place)
      : memory_(empty<1>({bytes}, aoti_torch_dtype_uint8(), place)) {}

  Layout layout() { return Layout(static_cast<std::byte*>(memory_.mutable_data_ptr())); }

 private:
  torch::stable::Tensor memory_;
};

}  // namespace clasp::cuda
