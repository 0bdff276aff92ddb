// AVX-512. Empty on other architectures.
#pragma once

#if defined(__x86_64__)

#  include <immintrin.h>

#  include <cstdint>

#  include "core/kernels.h"

// gcc 12 takes _mm512_undefined_ps(), which its intrinsics are written with, for a mistake of ours.
#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wuninitialized"
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#  endif

#  define CLASP_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace clasp::avx512 {

using Vector = __m512;

inline constexpr int64_t kLanes = 16;
inline constexpr int kTokens = 4;
inline constexpr int kPairs = 8;

CLASP_TARGET inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? 0xFFFF : static_cast<__mmask16>((1U << count) - 1U);
}

CLASP_TARGET inline Vector load(const float* p) {
  return _mm512_loadu_ps(p);
}

CLASP_TARGET inline Vector load_first(const float* p, int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}

CLASP_TARGET inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}

CLASP_TARGET inline Vector add(Vector a, Vector b) {
  return _mm512_add_ps(a, b);
}

CLASP_TARGET inline float sum(Vector x) {
  return _mm512_reduce_add_ps(x);
}

CLASP_TARGET inline void keep_in_register(Vector& x) {
  asm("" : "+v"(x));
}

#  include "core/tile.inc"

CLASP_TARGET inline void widen_bfloat16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source + i));
    const __m512i shifted = _mm512_slli_epi32(wide, 16);
    _mm512_mask_storeu_ps(target + i, mask, _mm512_castsi512_ps(shifted));
  }
}

CLASP_TARGET inline void widen_float16(const uint16_t* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = first_lanes(count - i);
    const __m512 wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, source + i));
    _mm512_mask_storeu_ps(target + i, mask, wide);
  }
}

inline constexpr Kernels kKernels{tile, squares, widen_bfloat16, widen_float16};

}  // namespace clasp::avx512

#  undef CLASP_TARGET
#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic pop
#  endif

#endif  // __x86_64__
