// AVX-512 with hardware dot products of bfloat16 pairs; otherwise as AVX-512. These products treat
// subnormals as zero, whatever the thread's floating-point mode. Empty on other architectures.
#pragma once

#if defined(__x86_64__)

#  include <immintrin.h>

#  include <cstdint>
#  include <cstring>

#  include "shared/scalar.h"
#  include "simd/kernels.h"
#  include "simd/kernels_avx512.h"

#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wuninitialized"
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#  endif

#  define CLASP_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace clasp::avx512_bf16 {

using Vector = __m512;
using avx512::broadcast;
using avx512::keys_at_once;
using avx512::kLanes;
using avx512::kMostProducts;
using avx512::multiply;
using avx512::store;
using avx512::sum;
using avx512::sum_each;

inline constexpr int64_t kHalf = 32;

template <class Element>
inline constexpr int64_t kStep = 2 * kHalf;

template <int kWhich>
CLASP_TARGET inline __m512i operand(const Bfloat16* p) {
  return _mm512_loadu_si512(p + kWhich * kHalf);
}

template <int kWhich>
CLASP_TARGET inline __m512i operand_first(const Bfloat16* p, int64_t count) {
  const int64_t left = count - kWhich * kHalf;
  if (left <= 0) return __m512i{};
  const __mmask32 mask = left >= kHalf ? 0xFFFFFFFFU : (1U << left) - 1U;
  return _mm512_maskz_loadu_epi16(mask, p + kWhich * kHalf);
}

CLASP_TARGET inline Vector multiply_add(__m512i a, __m512i b, Vector sums) {
  return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
}

CLASP_TARGET inline void keep_in_register(__m512i& x) {
  asm("" : "+v"(x));
}

#  include "simd/dot_products.inc"
#  include "simd/salience_bfloat16.inc"

inline constexpr Kernels with_bfloat16_products(Kernels kernels) {
  kernels.dots_of_bfloat16 = kDotProducts<Bfloat16>;
  kernels.row_logits_bfloat16 = row_logits_bfloat16;
  kernels.key_logits[static_cast<int>(Scalar::bfloat16)] = key_logits_bfloat16;
  return kernels;
}

inline constexpr Kernels kKernels = with_bfloat16_products(avx512::kKernels);

}  // namespace clasp::avx512_bf16

#  undef CLASP_TARGET
#  if defined(__GNUC__) && !defined(__clang__)
#    pragma GCC diagnostic pop
#  endif

#endif  // __x86_64__
