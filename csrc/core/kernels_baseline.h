// For every machine: 128-bit vectors as GCC and Clang provide them, SSE2 or NEON underneath.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/kernels.h"

#if defined(__ARM_NEON)
#  include <arm_neon.h>
#endif

namespace clasp::baseline {

using Vector = float __attribute__((vector_size(16)));

inline constexpr int64_t kLanes = 4;
inline constexpr int kTokens = 2;
inline constexpr int kPairs = 4;

inline Vector load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline Vector load_first(const float* p, int64_t count) {
  Vector x = {};
  std::memcpy(&x, p, sizeof(float) * (count < kLanes ? count : kLanes));
  return x;
}

inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline Vector add(Vector a, Vector b) {
  return a + b;
}

inline float sum(Vector x) {
  return (x[0] + x[2]) + (x[1] + x[3]);
}

inline void keep_in_register(Vector& x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}

#define CLASP_TARGET
#include "core/tile.inc"
#undef CLASP_TARGET

inline void widen_bfloat16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = bfloat16_to_float(source[i]);
}

inline void widen_float16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = float16_to_float(source[i]);
}

inline constexpr Kernels kKernels{tile, squares, widen_bfloat16, widen_float16};

}  // namespace clasp::baseline
