// AVX2. Empty on other architectures.
#pragma once

#if defined(__x86_64__)

#  include <immintrin.h>

#  include <cstdint>

#  include "core/kernels.h"

#  define CLASP_TARGET __attribute__((target("avx2,fma,f16c")))

namespace clasp::avx2 {

using Vector = __m256;

inline constexpr int64_t kLanes = 8;
inline constexpr int kTokens = 2;
inline constexpr int kPairs = 4;

CLASP_TARGET inline Vector load(const float* p) {
  return _mm256_loadu_ps(p);
}

CLASP_TARGET inline Vector load_first(const float* p, int64_t count) {
  const int clamped = static_cast<int>(count < kLanes ? count : kLanes);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), lane));
}

CLASP_TARGET inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}

CLASP_TARGET inline Vector add(Vector a, Vector b) {
  return _mm256_add_ps(a, b);
}

CLASP_TARGET inline float sum(Vector x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

CLASP_TARGET inline void keep_in_register(Vector& x) {
  asm("" : "+x"(x));
}

#  include "core/tile.inc"

CLASP_TARGET inline void widen_bfloat16(const uint16_t* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    const __m256i shifted = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    _mm256_storeu_ps(target + i, _mm256_castsi256_ps(shifted));
  }
  for (; i < count; ++i) target[i] = bfloat16_to_float(source[i]);
}

CLASP_TARGET inline void widen_float16(const uint16_t* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) target[i] = float16_to_float(source[i]);
}

inline constexpr Kernels kKernels{tile, squares, widen_bfloat16, widen_float16};

}  // namespace clasp::avx2

#  undef CLASP_TARGET

#endif  // __x86_64__
