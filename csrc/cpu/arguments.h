// Converts tensor arguments to the views that kernels take. Python checks arguments first and
// raises the errors that users see. The checks here keep a call that bypasses Python from reading
// out of bounds.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "algorithms/matrix.h"
#include "binding/scalars.h"
#include "shared/scalar.h"

namespace clasp::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_matrix(const Tensor& tensor, const char* name, ScalarType type,
                         int64_t num_images, int64_t width) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type, name,
                  " has the wrong device or dtype");
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == num_images && tensor.size(1) == width,
                  name, " has the wrong shape");
}

// One value per image, clamped to 0..maximum: from a [B] int64 tensor, or `maximum` for all images.
class PerImage {
 public:
  PerImage(const std::optional<Tensor>& values, const char* name, int64_t num_images,
           int64_t maximum)
      : maximum_(maximum) {
    STD_TORCH_CHECK(maximum >= 0, name, " must not be negative");
    if (!values) return;
    STD_TORCH_CHECK(values->is_cpu() && values->scalar_type() == ScalarType::Long &&
                        values->dim() == 1 && values->size(0) == num_images,
                    name, " must be an int64 CPU tensor with one value per image");
    data_ = values->const_data_ptr<int64_t>();
    stride_ = values->stride(0);
  }

  int64_t operator[](int64_t image) const {
    return data_ ? std::clamp<int64_t>(data_[image * stride_], 0, maximum_) : maximum_;
  }

 private:
  int64_t maximum_;
  const int64_t* data_ = nullptr;
  int64_t stride_ = 0;
};

// Read as bytes, because a mask viewed from another dtype may hold bytes other than 0 and 1.
class ValidMask {
 public:
  ValidMask(const std::optional<Tensor>& valid, const char* name, int64_t num_images,
            int64_t num_tokens) {
    if (!valid) return;
    check_matrix(*valid, name, ScalarType::Bool, num_images, num_tokens);
    data_ = static_cast<const uint8_t*>(valid->const_data_ptr());
    image_stride_ = valid->stride(0);
    token_stride_ = valid->stride(1);
  }

  auto image(int64_t index) const {
    const uint8_t* row = data_ ? data_ + index * image_stride_ : nullptr;
    return [row, stride = token_stride_](int64_t n) { return !row || row[n * stride] != 0; };
  }

 private:
  const uint8_t* data_ = nullptr;
  int64_t image_stride_ = 0;
  int64_t token_stride_ = 0;
};

// Weights of tokens, [B, N] float32.
class Weights {
 public:
  Weights(const std::optional<Tensor>& weights, const char* name, int64_t num_images,
          int64_t num_tokens)
      : num_tokens_(num_tokens) {
    if (!weights) return;
    check_matrix(*weights, name, ScalarType::Float, num_images, num_tokens);
    data_ = weights->const_data_ptr<float>();
    image_stride_ = weights->stride(0);
    token_stride_ = num_tokens == 1 ? 1 : weights->stride(1);
  }

  // Returns the weights of an image next to each other, in place or copied to `buffer`, or null if
  // there are none.
  const float* image(int64_t index, std::vector<float>& buffer) const {
    if (!data_) return nullptr;
    const float* row = data_ + index * image_stride_;
    if (token_stride_ == 1) return row;
    buffer.resize(num_tokens_);
    for (int64_t n = 0; n < num_tokens_; ++n) buffer[n] = row[n * token_stride_];
    return buffer.data();
  }

 private:
  int64_t num_tokens_;
  const float* data_ = nullptr;
  int64_t image_stride_ = 0;
  int64_t token_stride_ = 0;
};

// Token indices, [B, R]. An index past the last token is an error; a negative one means no token.
class Indices {
 public:
  Indices(const Tensor& indices, const char* name, int64_t num_images, int64_t num_tokens) {
    STD_TORCH_CHECK(indices.dim() == 2, name, " must be [B, R]");
    width_ = indices.size(1);
    check_matrix(indices, name, ScalarType::Long, num_images, width_);
    data_ = indices.const_data_ptr<int64_t>();
    image_stride_ = indices.stride(0);
    slot_stride_ = indices.stride(1);
    for (int64_t b = 0; b < num_images; ++b) {
      for (int64_t slot = 0; slot < width_; ++slot) {
        STD_TORCH_CHECK((*this)(b, slot) < num_tokens, name, " must lie in -1..", num_tokens - 1,
                        " (a token, or -1 for none), got ", (*this)(b, slot));
      }
    }
  }

  int64_t width() const { return width_; }

  // Returns the indices of an image that name a token, in their order.
  std::vector<int64_t> present(int64_t image) const {
    std::vector<int64_t> named;
    for (int64_t slot = 0; slot < width_; ++slot) {
      if ((*this)(image, slot) >= 0) named.push_back((*this)(image, slot));
    }
    return named;
  }

  int64_t operator()(int64_t image, int64_t slot) const {
    return data_[image * image_stride_ + slot * slot_stride_];
  }

 private:
  const int64_t* data_;
  int64_t width_;
  int64_t image_stride_;
  int64_t slot_stride_;
};

// A batch of matrices, [B, N, D].
class Batch {
 public:
  Batch(const Tensor& tensor, const char* name) : scalar_(scalar_of(tensor, name)) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 3, name, " must be [B, N, D] on CPU");
    num_tokens_ = tensor.size(1);
    STD_TORCH_CHECK(num_tokens_ <= std::numeric_limits<int32_t>::max(), name,
                    " has too many tokens");
    dim_ = tensor.size(2);
    data_ = static_cast<const char*>(tensor.const_data_ptr());
    image_stride_ = tensor.stride(0);
    token_stride_ = tensor.stride(1);
    column_stride_ = tensor.stride(2);
  }

  Matrix image(int64_t index) const {
    return {data_ + index * image_stride_ * scalar_size(scalar_), scalar_, num_tokens_, dim_,
            token_stride_,
            // torch does not define the stride of a dimension of size 1.
            dim_ == 1 ? 1 : column_stride_};
  }

 private:
  Scalar scalar_;
  const char* data_;
  int64_t num_tokens_;
  int64_t dim_;
  int64_t image_stride_;
  int64_t token_stride_;
  int64_t column_stride_;
};

}  // namespace clasp::cpu
