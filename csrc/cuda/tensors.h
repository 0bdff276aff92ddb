// Tensors as kernels take them: a pointer and strides, by value. The pointer of an omitted argument
// is null.
#pragma once

#include <cstdint>

#include "shared/host_device.h"
#include "shared/order.h"
#include "shared/scalar.h"
#include "shared/weights.h"

namespace clasp::cuda {

// [B, N, D]
template <class T>
struct Features {
  const T* data;
  int64_t image_stride;
  int64_t token_stride;
  int64_t column_stride;
  int32_t num_tokens;
  int32_t dim;

  CLASP_DEVICE const T* row(int64_t image, int32_t n) const {
    return data + image * image_stride + n * token_stride;
  }
};

// [B, N], of any of the three dtypes, chosen at run time because each value is read only a few
// times.
struct Salience {
  const void* data;
  Scalar scalar;
  int64_t image_stride;
  int64_t token_stride;

  CLASP_DEVICE float at(int64_t image, int32_t n) const {
    const int64_t offset = image * image_stride + n * token_stride;
    switch (scalar) {
      case Scalar::bfloat16:
        return to_float(static_cast<const Bfloat16*>(data)[offset]);
      case Scalar::float16:
        return to_float(static_cast<const Float16*>(data)[offset]);
      default:
        return static_cast<const float*>(data)[offset];
    }
  }
};

// [B, N] bytes; any byte other than 0 is true.
struct Mask {
  const uint8_t* data;
  int64_t image_stride;
  int64_t token_stride;

  CLASP_DEVICE bool at(int64_t image, int32_t n) const {
    return data == nullptr || data[image * image_stride + n * token_stride] != 0;
  }
};

// [B, N]
struct Weights {
  const float* data;
  int64_t image_stride;
  int64_t token_stride;

  CLASP_DEVICE float at(int64_t image, int32_t n) const {
    return usable_weight(data[image * image_stride + n * token_stride]);
  }
};

// Unchecked token indices, [B, P].
template <class Index>
struct Selected {
  const Index* data;
  int64_t image_stride;
  int64_t slot_stride;
  int64_t width;

  // Returns -1 for an index that is not a token.
  CLASP_DEVICE int32_t at(int64_t image, int64_t slot, int32_t num_tokens) const {
    const int64_t n = data[image * image_stride + slot * slot_stride];
    return n >= 0 && n < num_tokens ? static_cast<int32_t>(n) : -1;
  }
};

}  // namespace clasp::cuda
