// A strided view of N rows, and the conversion of single rows to float32.
#pragma once

#include <cstdint>

#include "shared/scalar.h"
#include "simd/kernels.h"

namespace clasp {

struct Matrix {
  const void* data;
  Scalar scalar;
  int64_t num_rows;
  int64_t num_columns;
  int64_t row_stride;  // row_stride and column_stride are in elements
  int64_t column_stride;

  const void* row(int64_t index) const {
    return static_cast<const char*>(data) + index * row_stride * scalar_size(scalar);
  }

  bool has_contiguous_rows() const { return column_stride == 1; }

  // Returns row `index` with contiguous elements: in place if possible, else copied to `buffer`.
  const void* contiguous(int64_t index, void* buffer) const {
    const void* source = row(index);
    if (has_contiguous_rows()) return source;
    if (scalar == Scalar::float32) {
      copy_apart(static_cast<const float*>(source), static_cast<float*>(buffer));
    } else {
      copy_apart(static_cast<const uint16_t*>(source), static_cast<uint16_t*>(buffer));
    }
    return buffer;
  }

  // Whether load() works without a buffer.
  bool loads_in_place() const { return scalar == Scalar::float32 && has_contiguous_rows(); }

  // Returns row `index` as contiguous float32: in place if possible, else written to `buffer`.
  const float* load(int64_t index, const Kernels& kernels, float* buffer) const {
    const void* source = row(index);
    if (loads_in_place()) return static_cast<const float*>(source);
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

 private:
  template <class Bits>
  void copy_apart(const Bits* source, Bits* target) const {
    for (int64_t i = 0; i < num_columns; ++i) target[i] = source[i * column_stride];
  }
};

}  // namespace clasp
