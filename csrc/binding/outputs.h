// Allocates output tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "binding/failures.h"

namespace clasp {

// The device of a tensor. device_type is a value of aoti_torch_device_type_cpu() and the like.
struct Place {
  int32_t device_type;
  int32_t device_index;

  static Place of(const torch::stable::Tensor& tensor) {
    Place place;
    check_torch(aoti_torch_get_device_type(tensor.get(), &place.device_type), "get_device_type");
    check_torch(aoti_torch_get_device_index(tensor.get(), &place.device_index), "get_device_index");
    return place;
  }
};

// Without a message from torch, lack of memory is the most likely cause, because the sizes have
// been checked by then.
[[noreturn]] inline void throw_no_tensor(const int64_t* sizes, std::size_t num_dims, Place place) {
  std::string message = torch_message();
  if (message.empty()) {
    const bool on_cpu = place.device_type == aoti_torch_device_type_cpu();
    message =
        std::string(on_cpu ? kNoCpuMemory : kNoCudaMemory) + ". There is none for a tensor of";
    for (std::size_t d = 0; d < num_dims; ++d) {
      message += (d == 0 ? " [" : ", ") + std::to_string(sizes[d]);
    }
    message += "] (assumed cause: torch before 2.13 prints the reason to stderr only).";
  }
  throw std::runtime_error(message);
}

// Returns an uninitialized contiguous tensor. `dtype` is a value of aoti_torch_dtype_int64() and
// the like. The stable API's new_empty looks up its operator by name in every call, which takes
// longer than selecting from a small image.
template <std::size_t kDims>
torch::stable::Tensor empty(const std::array<int64_t, kDims>& sizes, int32_t dtype, Place place) {
  std::array<int64_t, kDims> strides;
  int64_t stride = 1;
  for (std::size_t d = kDims; d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  AtenTensorHandle handle;
  const AOTITorchError code =
      aoti_torch_empty_strided(static_cast<int64_t>(kDims), sizes.data(), strides.data(), dtype,
                               place.device_type, place.device_index, &handle);
  if (code != TORCH_SUCCESS) throw_no_tensor(sizes.data(), kDims, place);
  return torch::stable::Tensor(handle);
}

// On the CPU.
template <std::size_t kDims>
torch::stable::Tensor empty(const std::array<int64_t, kDims>& sizes, int32_t dtype) {
  return empty<kDims>(sizes, dtype, {aoti_torch_device_type_cpu(), /*device_index=*/0});
}

// On the CPU, in the dtype of `like`.
template <std::size_t kDims>
torch::stable::Tensor empty(const std::array<int64_t, kDims>& sizes,
                            const torch::stable::Tensor& like) {
  int32_t dtype;
  check_torch(aoti_torch_get_dtype(like.get(), &dtype), "get_dtype");
  return empty<kDims>(sizes, dtype);
}

}  // namespace clasp
