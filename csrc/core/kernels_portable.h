// Plain C++ for machines without AVX2, and for other architectures, where the compiler vectorises
// the fixed-width lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/kernels.h"

namespace clasp::portable {

inline constexpr int kLanes = 16;

inline float multiply_add(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

inline float dot(const float* a, const float* b, int64_t dim) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = multiply_add(a[i + lane], b[i + lane], lanes[lane]);
    }
  }
  for (int lane = 0; i < dim; ++i, ++lane) lanes[lane] = multiply_add(a[i], b[i], lanes[lane]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

inline void dots(const float* token, const float* const* rows, int64_t num_rows, int64_t dim,
                 float* dots) {
  for (int64_t r = 0; r < num_rows; ++r) dots[r] = dot(token, rows[r], dim);
}

inline void widen_bfloat16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = bfloat16_to_float(source[i]);
}

inline void widen_float16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = float16_to_float(source[i]);
}

inline constexpr Kernels kKernels{dots, widen_bfloat16, widen_float16};

}  // namespace clasp::portable
