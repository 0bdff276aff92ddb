// The lengths of rows.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd/kernels.h"

namespace clasp {

// norms[i] = the length of rows[i], which has `dim` contiguous elements.
inline void compute_norms(const DotProducts& dots, const void* const* rows, int64_t count,
                          int64_t dim, float* norms) {
  dots.squares(rows, count, dim, norms);
  for (int64_t i = 0; i < count; ++i) norms[i] = std::sqrt(norms[i]);
}

}  // namespace clasp
