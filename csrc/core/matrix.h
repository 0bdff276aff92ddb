// A strided view of N feature rows, and their conversion to float32, one row at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/kernels.h"

namespace clasp {

enum class Scalar { float32, bfloat16, float16 };

inline int64_t scalar_size(Scalar scalar) {
  return scalar == Scalar::float32 ? 4 : 2;
}

struct Matrix {
  const void* data;
  Scalar scalar;
  int64_t num_rows;
  int64_t num_columns;
  int64_t row_stride;  // both in elements
  int64_t column_stride;

  const void* row(int64_t index) const {
    return static_cast<const char*>(data) + index * row_stride * scalar_size(scalar);
  }

  // Whether rows can be read where they are, as contiguous float32.
  bool in_place() const { return scalar == Scalar::float32 && column_stride == 1; }

  // Row `index` as contiguous float32: the row itself if in_place(), else written to `buffer`.
  const float* load(int64_t index, const Kernels& kernels, float* buffer) const {
    const void* source = row(index);
    if (in_place()) return static_cast<const float*>(source);
    if (column_stride == 1) {
      const auto* halves = static_cast<const uint16_t*>(source);
      const auto widen =
          scalar == Scalar::bfloat16 ? kernels.widen_bfloat16 : kernels.widen_float16;
      widen(halves, num_columns, buffer);
      return buffer;
    }
    for (int64_t i = 0; i < num_columns; ++i) buffer[i] = element(source, i * column_stride);
    return buffer;
  }

  float element(const void* base, int64_t offset) const {
    if (scalar == Scalar::float32) return static_cast<const float*>(base)[offset];
    const uint16_t half = static_cast<const uint16_t*>(base)[offset];
    return scalar == Scalar::bfloat16 ? bfloat16_to_float(half) : float16_to_float(half);
  }
};

}  // namespace clasp
