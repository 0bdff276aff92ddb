// The copy of chosen rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/matrix.h"
#include "core/scalar.h"

namespace clasp {

// Row `index` of `matrix` with its elements side by side, bit for bit; zeros for a negative index.
inline void copy_row(const Matrix& matrix, int64_t index, void* out) {
  const int64_t element = scalar_size(matrix.scalar);
  const auto size = static_cast<size_t>(matrix.num_columns * element);
  if (index < 0) {
    std::memset(out, 0, size);
    return;
  }
  const auto* source = static_cast<const char*>(matrix.row(index));
  if (matrix.column_stride == 1) {
    std::memcpy(out, source, size);
    return;
  }
  auto* target = static_cast<char*>(out);
  const int64_t stride = matrix.column_stride * element;
  if (element == 4) {
    for (int64_t i = 0; i < matrix.num_columns; ++i) {
      std::memcpy(target + i * 4, source + i * stride, 4);
    }
  } else {
    for (int64_t i = 0; i < matrix.num_columns; ++i) {
      std::memcpy(target + i * 2, source + i * stride, 2);
    }
  }
}

}  // namespace clasp
