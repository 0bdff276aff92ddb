// The dtypes that the ops accept.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "shared/scalar.h"

namespace clasp {

inline Scalar scalar_of(const torch::stable::Tensor& tensor, const char* name) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Scalar::float32;
    case ScalarType::BFloat16:
      return Scalar::bfloat16;
    case ScalarType::Half:
      return Scalar::float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
  return Scalar::float32;
}

}  // namespace clasp
