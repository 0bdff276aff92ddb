// Copies selected rows.
#pragma once

#include <cstdint>
#include <cstring>

#include "algorithms/matrix.h"
#include "shared/scalar.h"

namespace clasp {

// Copies row `index` of `matrix` bit for bit to contiguous `out`; zeros for a negative index.
inline void copy_row(const Matrix& matrix, int64_t index, void* out) {
  const auto size = static_cast<size_t>(matrix.num_columns * scalar_size(matrix.scalar));
  if (index < 0) {
    std::memset(out, 0, size);
    return;
  }
  const void* row = matrix.contiguous(index, out);
  if (row != out) std::memcpy(out, row, size);
}

}  // namespace clasp
