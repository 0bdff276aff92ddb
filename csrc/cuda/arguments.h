// Converts tensor arguments to the views that kernels take. Python checks arguments first and
// raises the errors that users see. The checks here keep a call that bypasses Python from reading
// out of bounds. Values stay on the GPU and are not checked: kernels stay in bounds for any values.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

#include "binding/scalars.h"
#include "cuda/image_budget.h"
#include "cuda/launch.h"
#include "cuda/tensors.h"
#include "shared/scalar.h"

namespace clasp::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The device and sizes that all tensors of a call share.
class Call {
 public:
  explicit Call(const Tensor& features) : device_(features.get_device_index()) {
    STD_TORCH_CHECK(is_on_gpu(features) && features.dim() == 3,
                    "features must be [B, N, D] on GPU");
    num_images = features.size(0);
    // Half of the int32 range, so that loops that step past the last token do not overflow.
    constexpr int64_t kMost = int64_t{1} << 30;
    STD_TORCH_CHECK(features.size(1) <= kMost, "features has too many tokens");
    STD_TORCH_CHECK(features.size(2) <= kMost, "features has too many columns");
    num_tokens = static_cast<int32_t>(features.size(1));
  }

  template <class T>
  Features<T> features(const Tensor& tensor) const {
    // torch does not define the stride of a dimension of size 1.
    const auto stride = [&](int64_t dimension, int64_t of_one) {
      return tensor.size(dimension) == 1 ? of_one : tensor.stride(dimension);
    };
    return {static_cast<const T*>(tensor.const_data_ptr()),
            stride(0, 0),
            stride(1, 0),
            stride(2, 1),
            num_tokens,
            static_cast<int32_t>(tensor.size(2))};
  }

  Salience salience(const Tensor& tensor) const {
    const Scalar scalar = scalar_of(tensor, "salience");
    check(tensor, "salience", tensor.scalar_type(), num_tokens);
    return {tensor.const_data_ptr(), scalar, tensor.stride(0), tensor.stride(1)};
  }

  Mask mask(const std::optional<Tensor>& tensor) const {
    if (!tensor) return {nullptr, 0, 0};
    check(*tensor, "valid", ScalarType::Bool, num_tokens);
    return {static_cast<const uint8_t*>(tensor->const_data_ptr()), tensor->stride(0),
            tensor->stride(1)};
  }

  Weights weights(const std::optional<Tensor>& tensor) const {
    if (!tensor) return {nullptr, 0, 0};
    check(*tensor, "weights", ScalarType::Float, num_tokens);
    return {tensor->const_data_ptr<float>(), tensor->stride(0), tensor->stride(1)};
  }

  Selected<int64_t> selected(const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.dim() == 2, "selected must be [B, P]");
    check(tensor, "selected", ScalarType::Long, tensor.size(1));
    return {tensor.const_data_ptr<int64_t>(), tensor.stride(0), tensor.stride(1), tensor.size(1)};
  }

  Counts counts(const std::optional<Tensor>& tensor, const char* name, int64_t most) const {
    STD_TORCH_CHECK(most >= 0, name, " must not be negative");
    if (!tensor) return {nullptr, 0, most};
    STD_TORCH_CHECK(is_here(*tensor) && tensor->scalar_type() == ScalarType::Long &&
                        tensor->dim() == 1 && tensor->size(0) == num_images,
                    name, " must be an int64 tensor on the GPU with one value per image");
    return {tensor->const_data_ptr<int64_t>(), tensor->stride(0), most};
  }

  int64_t num_images;
  int32_t num_tokens;

 private:
  bool is_here(const Tensor& tensor) const {
    return is_on_gpu(tensor) && tensor.get_device_index() == device_;
  }

  void check(const Tensor& tensor, const char* name, ScalarType type, int64_t width) const {
    STD_TORCH_CHECK(is_here(tensor) && tensor.scalar_type() == type, name,
                    " has the wrong device or dtype");
    STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == num_images && tensor.size(1) == width,
                    name, " has the wrong shape");
  }

  int32_t device_;
};

}  // namespace clasp::cuda
