#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/kernels.h"

// gcc 12 takes _mm512_undefined_ps(), which its intrinsics are written with, for a mistake of ours.
#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wuninitialized"
#  pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define CLASP_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace clasp::avx512 {

inline constexpr int64_t kLanes = 16;

CLASP_AVX512 inline __mmask16 first_lanes(int64_t count) {
  if (count <= 0) return 0;
  return count >= kLanes ? 0xFFFF : static_cast<__mmask16>((1U << count) - 1U);
}

// Two accumulators a pair: with few rows the chain of dependent additions, not their number, is
// what a dot product waits for.
template <int kRows>
CLASP_AVX512 inline void dot_block(const float* token, const float* const* rows, int64_t dim,
                                   float* dots) {
  __m512 even[kRows];
  __m512 odd[kRows];
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
    const __m512 token_even = _mm512_loadu_ps(token + i);
    const __m512 token_odd = _mm512_loadu_ps(token + i + kLanes);
    for (int r = 0; r < kRows; ++r) {
      even[r] = _mm512_fmadd_ps(token_even, _mm512_loadu_ps(rows[r] + i), even[r]);
      odd[r] = _mm512_fmadd_ps(token_odd, _mm512_loadu_ps(rows[r] + i + kLanes), odd[r]);
    }
  }
  if (i < dim) {
    const __mmask16 mask_even = first_lanes(dim - i);
    const __mmask16 mask_odd = first_lanes(dim - i - kLanes);
    const __m512 token_even = _mm512_maskz_loadu_ps(mask_even, token + i);
    const __m512 token_odd = _mm512_maskz_loadu_ps(mask_odd, token + i + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const __m512 row_even = _mm512_maskz_loadu_ps(mask_even, rows[r] + i);
      const __m512 row_odd = _mm512_maskz_loadu_ps(mask_odd, rows[r] + i + kLanes);
      even[r] = _mm512_fmadd_ps(token_even, row_even, even[r]);
      odd[r] = _mm512_fmadd_ps(token_odd, row_odd, odd[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) dots[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
}

CLASP_AVX512 inline void dots(const float* token, const float* const* rows, int64_t num_rows,
                              int64_t dim, float* dots) {
  int64_t r = 0;
  for (; r + 8 <= num_rows; r += 8) dot_block<8>(token, rows + r, dim, dots + r);
  for (; r + 4 <= num_rows; r += 4) dot_block<4>(token, rows + r, dim, dots + r);
  for (; r + 2 <= num_rows; r += 2) dot_block<2>(token, rows + r, dim, dots + r);
  if (r < num_rows) dot_block<1>(token, rows + r, dim, dots + r);
}

CLASP_AVX512 inline void widen_bfloat16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source + i));
    const __m512i shifted = _mm512_slli_epi32(wide, 16);
    _mm512_mask_storeu_ps(target + i, mask, _mm512_castsi512_ps(shifted));
  }
}

CLASP_AVX512 inline void widen_float16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, source + i));
    _mm512_mask_storeu_ps(target + i, mask, wide);
  }
}

inline constexpr Kernels kKernels{dots, widen_bfloat16, widen_float16};

}  // namespace clasp::avx512

#if defined(__GNUC__) && !defined(__clang__)
#  pragma GCC diagnostic pop
#endif
