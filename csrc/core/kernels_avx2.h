#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/kernels.h"

#define CLASP_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace clasp::avx2 {

inline constexpr int64_t kLanes = 8;

CLASP_AVX2 inline __m256i first_lanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int clamped = static_cast<int>(count < 0 ? 0 : count > kLanes ? kLanes : count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), lane);
}

CLASP_AVX2 inline float sum(__m256 x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Two accumulators a pair, as for AVX-512; four rows of them fit the sixteen registers.
template <int kRows>
CLASP_AVX2 inline void dot_block(const float* token, const float* const* rows, int64_t dim,
                                 float* dots) {
  __m256 even[kRows];
  __m256 odd[kRows];
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
    const __m256 token_even = _mm256_loadu_ps(token + i);
    const __m256 token_odd = _mm256_loadu_ps(token + i + kLanes);
    for (int r = 0; r < kRows; ++r) {
      even[r] = _mm256_fmadd_ps(token_even, _mm256_loadu_ps(rows[r] + i), even[r]);
      odd[r] = _mm256_fmadd_ps(token_odd, _mm256_loadu_ps(rows[r] + i + kLanes), odd[r]);
    }
  }
  if (i < dim) {
    const __m256i mask_even = first_lanes(dim - i);
    const __m256i mask_odd = first_lanes(dim - i - kLanes);
    const __m256 token_even = _mm256_maskload_ps(token + i, mask_even);
    const __m256 token_odd = _mm256_maskload_ps(token + i + kLanes, mask_odd);
    for (int r = 0; r < kRows; ++r) {
      const __m256 row_even = _mm256_maskload_ps(rows[r] + i, mask_even);
      const __m256 row_odd = _mm256_maskload_ps(rows[r] + i + kLanes, mask_odd);
      even[r] = _mm256_fmadd_ps(token_even, row_even, even[r]);
      odd[r] = _mm256_fmadd_ps(token_odd, row_odd, odd[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) dots[r] = sum(_mm256_add_ps(even[r], odd[r]));
}

CLASP_AVX2 inline void dots(const float* token, const float* const* rows, int64_t num_rows,
                            int64_t dim, float* dots) {
  int64_t r = 0;
  for (; r + 4 <= num_rows; r += 4) dot_block<4>(token, rows + r, dim, dots + r);
  for (; r + 2 <= num_rows; r += 2) dot_block<2>(token, rows + r, dim, dots + r);
  if (r < num_rows) dot_block<1>(token, rows + r, dim, dots + r);
}

CLASP_AVX2 inline void widen_bfloat16(const uint16_t* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    const __m256i shifted = _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    _mm256_storeu_ps(target + i, _mm256_castsi256_ps(shifted));
  }
  for (; i < count; ++i) target[i] = bfloat16_to_float(source[i]);
}

CLASP_AVX2 inline void widen_float16(const uint16_t* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
  }
  for (; i < count; ++i) target[i] = float16_to_float(source[i]);
}

inline constexpr Kernels kKernels{dots, widen_bfloat16, widen_float16};

}  // namespace clasp::avx2
