// AVX2. Empty on other architectures.
#pragma once

#if defined(__x86_64__)

#  include <immintrin.h>

#  include <cstdint>
#  include <cstring>

#  include "shared/order.h"
#  include "simd/kernels.h"

#  define CLASP_TARGET __attribute__((target("avx2,fma,f16c")))

namespace clasp::avx2 {

using Vector = __m256;

inline constexpr int64_t kLanes = 8;
inline constexpr int kAccumulators = 12;
inline constexpr int kMostProducts = 8;

CLASP_TARGET inline __m256i first_lanes(int64_t count) {
  const int clamped = static_cast<int>(count < kLanes ? count : kLanes);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), lane);
}

CLASP_TARGET inline Vector widened(__m128i halves, Bfloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

CLASP_TARGET inline Vector widened(__m128i halves, Float16) {
  return _mm256_cvtph_ps(halves);
}

// The result is in the upper 16 bits of each lane; the lower 16 bits are undefined.
CLASP_TARGET inline __m256i rounded_to_bfloat16(Vector x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  const __m256i rounded = _mm256_add_epi32(bits, bias);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, is_nan);
}

CLASP_TARGET inline Vector load(const float* p) {
  return _mm256_loadu_ps(p);
}

template <class Half>
CLASP_TARGET inline Vector load(const Half* p) {
  return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), Half{});
}

// A pair of bfloat16 becomes two floats by a shift (even elements) and a mask (odd elements).
CLASP_TARGET inline Vector even_halves(const Bfloat16* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
}

CLASP_TARGET inline Vector odd_halves(const Bfloat16* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U));
  return _mm256_castsi256_ps(_mm256_and_si256(halves, high));
}

CLASP_TARGET inline Vector load_first(const float* p, int64_t count) {
  return _mm256_maskload_ps(p, first_lanes(count));
}

template <class Half>
CLASP_TARGET inline Vector load_first(const Half* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Half whole[kLanes] = {};
  std::memcpy(whole, p, sizeof(Half) * count);
  return load(whole);
}

CLASP_TARGET inline void store(float* p, Vector x) {
  _mm256_storeu_ps(p, x);
}

CLASP_TARGET inline void store(Float16* p, Vector x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

CLASP_TARGET inline void store_first(float* p, Vector x, int64_t count) {
  _mm256_maskstore_ps(p, first_lanes(count), x);
}

CLASP_TARGET inline void store_first(Float16* p, Vector x, int64_t count) {
  Float16 whole[kLanes];
  store(whole, x);
  std::memcpy(p, whole, sizeof(Float16) * (count < kLanes ? count : kLanes));
}

CLASP_TARGET inline void load_pair(const Bfloat16* p, Vector& even, Vector& odd) {
  even = even_halves(p);
  odd = odd_halves(p);
}

CLASP_TARGET inline void load_pair_first(const Bfloat16* p, int64_t count, Vector& even,
                                         Vector& odd) {
  Bfloat16 whole[2 * kLanes] = {};
  std::memcpy(whole, p, sizeof(Bfloat16) * count);
  load_pair(whole, even, odd);
}

CLASP_TARGET inline void store_pair(Bfloat16* p, Vector even, Vector odd) {
  const __m256i low = _mm256_srli_epi32(rounded_to_bfloat16(even), 16);
  const __m256i pair = _mm256_blend_epi16(low, rounded_to_bfloat16(odd), 0xAA);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), pair);
}

CLASP_TARGET inline void store_pair_first(Bfloat16* p, Vector even, Vector odd, int64_t count) {
  Bfloat16 whole[2 * kLanes];
  store_pair(whole, even, odd);
  std::memcpy(p, whole, sizeof(Bfloat16) * count);
}

CLASP_TARGET inline Vector broadcast(float x) {
  return _mm256_set1_ps(x);
}

CLASP_TARGET inline Vector multiply(Vector a, Vector b) {
  return _mm256_mul_ps(a, b);
}

CLASP_TARGET inline Vector divide(Vector a, Vector b) {
  return _mm256_div_ps(a, b);
}

CLASP_TARGET inline Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}

CLASP_TARGET inline Vector add(Vector a, Vector b) {
  return _mm256_add_ps(a, b);
}

CLASP_TARGET inline Vector subtract(Vector a, Vector b) {
  return _mm256_sub_ps(a, b);
}

CLASP_TARGET inline Vector maximum(Vector a, Vector b) {
  return _mm256_max_ps(a, b);
}

CLASP_TARGET inline float largest(Vector x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

CLASP_TARGET inline Vector power_of_two(Vector x) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(x), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3F800000)));
}

CLASP_TARGET inline Vector zero_where_less(Vector x, Vector y, Vector z) {
  return _mm256_and_ps(_mm256_cmp_ps(y, z, _CMP_NLT_UQ), x);
}

CLASP_TARGET inline float sum(Vector x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Adds by interleaving, which halves the number of vectors each time: within 128-bit lanes, then
// across them.
CLASP_TARGET inline Vector sum_each(const Vector* x) {
  Vector halves[2];
  CLASP_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Vector* four = x + 4 * i;
    const Vector a =
        add(_mm256_unpacklo_ps(four[0], four[1]), _mm256_unpackhi_ps(four[0], four[1]));
    const Vector b =
        add(_mm256_unpacklo_ps(four[2], four[3]), _mm256_unpackhi_ps(four[2], four[3]));
    halves[i] = add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xEE));
  }
  return add(_mm256_permute2f128_ps(halves[0], halves[1], 0x20),
             _mm256_permute2f128_ps(halves[0], halves[1], 0x31));
}

CLASP_TARGET inline void keep_in_register(Vector& x) {
  asm("" : "+x"(x));
}

#  include "simd/table.inc"

}  // namespace clasp::avx2

#  undef CLASP_TARGET

#endif  // __x86_64__
