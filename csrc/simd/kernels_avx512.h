// AVX-512. Empty on other architectures.
#pragma once

#if defined(__x86_64__)

#  include <immintrin.h>

#  include <cstdint>
#  include <cstring>

#  include "shared/order.h"
#  include "simd/kernels.h"

// gcc 12 warns about _mm512_undefined_ps(), which its own intrinsics use.
#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wuninitialized"
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#  endif

#  define CLASP_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace clasp::avx512 {

using Vector = __m512;

inline constexpr int64_t kLanes = 16;
inline constexpr int kAccumulators = 24;
inline constexpr int kMostProducts = 16;

CLASP_TARGET inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? 0xFFFF : static_cast<__mmask16>((1U << count) - 1U);
}

CLASP_TARGET inline Vector widened(__m256i halves, Bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

CLASP_TARGET inline Vector widened(__m256i halves, Float16) {
  return _mm512_cvtph_ps(halves);
}

// The result is in the upper 16 bits of each lane; the lower 16 bits are undefined.
CLASP_TARGET inline __m512i rounded_to_bfloat16(Vector x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  const __m512i rounded = _mm512_add_epi32(bits, bias);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_blend_epi32(is_nan, rounded, quiet);
}

CLASP_TARGET inline __m256i narrowed_to_float16(Vector x) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

CLASP_TARGET inline Vector load(const float* p) {
  return _mm512_loadu_ps(p);
}

template <class Half>
CLASP_TARGET inline Vector load(const Half* p) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), Half{});
}

// A pair of bfloat16 becomes two floats by a shift (even elements) and a mask (odd elements).
CLASP_TARGET inline Vector even_halves(__m512i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}

CLASP_TARGET inline Vector odd_halves(__m512i halves) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000U));
  return _mm512_castsi512_ps(_mm512_and_si512(halves, high));
}

CLASP_TARGET inline Vector even_halves(const Bfloat16* p) {
  return even_halves(_mm512_loadu_si512(p));
}

CLASP_TARGET inline Vector odd_halves(const Bfloat16* p) {
  return odd_halves(_mm512_loadu_si512(p));
}

CLASP_TARGET inline Vector load_first(const float* p, int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}

template <class Half>
CLASP_TARGET inline Vector load_first(const Half* p, int64_t count) {
  return widened(_mm256_maskz_loadu_epi16(first_lanes(count), p), Half{});
}

CLASP_TARGET inline void store(float* p, Vector x) {
  _mm512_storeu_ps(p, x);
}

CLASP_TARGET inline void store(Float16* p, Vector x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed_to_float16(x));
}

CLASP_TARGET inline void store_first(float* p, Vector x, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), x);
}

CLASP_TARGET inline void store_first(Float16* p, Vector x, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrowed_to_float16(x));
}

CLASP_TARGET inline void load_pair(const Bfloat16* p, Vector& even, Vector& odd) {
  even = even_halves(p);
  odd = odd_halves(p);
}

CLASP_TARGET inline __mmask32 first_of_pair(int64_t count) {
  return count >= 2 * kLanes ? 0xFFFFFFFFU : (1U << count) - 1U;
}

CLASP_TARGET inline void load_pair_first(const Bfloat16* p, int64_t count, Vector& even,
                                         Vector& odd) {
  const __m512i halves = _mm512_maskz_loadu_epi16(first_of_pair(count), p);
  even = even_halves(halves);
  odd = odd_halves(halves);
}

CLASP_TARGET inline __m512i narrowed_pair(Vector even, Vector odd) {
  const __m512i low = _mm512_srli_epi32(rounded_to_bfloat16(even), 16);
  return _mm512_mask_blend_epi16(0xAAAAAAAAU, low, rounded_to_bfloat16(odd));
}

CLASP_TARGET inline void store_pair(Bfloat16* p, Vector even, Vector odd) {
  _mm512_storeu_si512(p, narrowed_pair(even, odd));
}

CLASP_TARGET inline void store_pair_first(Bfloat16* p, Vector even, Vector odd, int64_t count) {
  _mm512_mask_storeu_epi16(p, first_of_pair(count), narrowed_pair(even, odd));
}

CLASP_TARGET inline Vector broadcast(float x) {
  return _mm512_set1_ps(x);
}

CLASP_TARGET inline Vector multiply(Vector a, Vector b) {
  return _mm512_mul_ps(a, b);
}

CLASP_TARGET inline Vector divide(Vector a, Vector b) {
  return _mm512_div_ps(a, b);
}

CLASP_TARGET inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}

CLASP_TARGET inline Vector add(Vector a, Vector b) {
  return _mm512_add_ps(a, b);
}

CLASP_TARGET inline Vector subtract(Vector a, Vector b) {
  return _mm512_sub_ps(a, b);
}

CLASP_TARGET inline Vector maximum(Vector a, Vector b) {
  return _mm512_max_ps(a, b);
}

CLASP_TARGET inline float largest(Vector x) {
  return _mm512_reduce_max_ps(x);
}

CLASP_TARGET inline Vector power_of_two(Vector x) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(x), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3F800000)));
}

CLASP_TARGET inline Vector zero_where_less(Vector x, Vector y, Vector z) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, z, _CMP_NLT_UQ), x);
}

CLASP_TARGET inline float sum(Vector x) {
  return _mm512_reduce_add_ps(x);
}

// Adds by interleaving, which halves the number of vectors each time: within 128-bit lanes, then
// across them.
CLASP_TARGET inline Vector sum_each(const Vector* x) {
  Vector quarters[4];
  CLASP_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Vector* four = x + 4 * i;
    const Vector a =
        add(_mm512_unpacklo_ps(four[0], four[1]), _mm512_unpackhi_ps(four[0], four[1]));
    const Vector b =
        add(_mm512_unpacklo_ps(four[2], four[3]), _mm512_unpackhi_ps(four[2], four[3]));
    quarters[i] = add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
  }
  const Vector low = add(_mm512_shuffle_f32x4(quarters[0], quarters[1], 0x88),
                         _mm512_shuffle_f32x4(quarters[0], quarters[1], 0xDD));
  const Vector high = add(_mm512_shuffle_f32x4(quarters[2], quarters[3], 0x88),
                          _mm512_shuffle_f32x4(quarters[2], quarters[3], 0xDD));
  return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}

CLASP_TARGET inline void keep_in_register(Vector& x) {
  asm("" : "+v"(x));
}

#  include "simd/table.inc"

}  // namespace clasp::avx512

#  undef CLASP_TARGET
#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic pop
#  endif

#endif  // __x86_64__
