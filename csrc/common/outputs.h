// Tensors for results.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace clasp {

// Where a tensor lies, as aoti_torch_device_type_cpu() and its like give it.
struct Place {
  int32_t device_type;
  int32_t device_index;

  static Place of(const torch::stable::Tensor& tensor) {
    Place place;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &place.device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &place.device_index));
    return place;
  }
};

// A contiguous tensor, its elements not yet written. `dtype` as aoti_torch_dtype_int64() and its
// like give it. The stable new_empty looks its operator up by name in every call, which takes
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
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(kDims), sizes.data(),
                                                         strides.data(), dtype, place.device_type,
                                                         place.device_index, &handle));
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
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty<kDims>(sizes, dtype);
}

}  // namespace clasp
