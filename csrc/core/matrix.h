// A strided view of N rows, and their conversion to float32, one row at a time.
#pragma once

#include <cstdint>

#include "core/kernels.h"
#include "core/scalar.h"

namespace clasp {

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
      if (scalar == Scalar::bfloat16) {
        kernels.widen_bfloat16(static_cast<const Bfloat16*>(source), num_columns, buffer);
      } else {
        kernels.widen_float16(static_cast<const Float16*>(source), num_columns, buffer);
      }
      return buffer;
    }
    for (int64_t i = 0; i < num_columns; ++i) buffer[i] = element(source, i * column_stride);
    return buffer;
  }

  float element(const void* base, int64_t offset) const {
    switch (scalar) {
      case Scalar::bfloat16:
        return to_float(static_cast<const Bfloat16*>(base)[offset]);
      case Scalar::float16:
        return to_float(static_cast<const Float16*>(base)[offset]);
      default:
        return static_cast<const float*>(base)[offset];
    }
  }
};

}  // namespace clasp
