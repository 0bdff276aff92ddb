// Dot products of 32 x 32 tokens by one warp, on tensor cores with float32 accumulation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "shared/scalar.h"

namespace clasp::cuda {

namespace wmma = nvcuda::wmma;

// 16-bit types, whose products are exact in float32.
template <class Element>
struct HalfMma {
  static constexpr int kDepth = 16;
  static constexpr bool kAddsSlices = false;
  static constexpr int kUnroll = 2;
  using Sum = wmma::fragment<wmma::accumulator, 16, 16, kDepth, float>;

  template <class Use, class Layout>
  struct Operand {
    wmma::fragment<Use, 16, 16, kDepth, Element, Layout> values;

    __device__ void load(const void* first, int pitch) {
      wmma::load_matrix_sync(values, static_cast<const Element*>(first), pitch);
    }
  };

  template <class Left, class Right>
  __device__ static void multiply(const Left& left, const Right& right, Sum& sum) {
    wmma::mma_sync(sum, left.values, right.values, sum);
  }
};

// Represents float32 as the sum of two tf32 values of 11 bits each. Three of the four products are
// computed; the fourth is below 2^-22 of the first. Integers up to 2^11 are exact.
struct FloatMma {
  static constexpr int kDepth = 8;
  // Tensor cores truncate sums instead of rounding them. The errors of hundreds of additions have
  // the same sign, and over a thousand features they approach the tolerance of 1e-5. Slices are
  // therefore added outside the tensor cores.
  static constexpr bool kAddsSlices = true;
  static constexpr int kUnroll = 1;  // two sets of sums leave no registers to unroll more
  using Sum = wmma::fragment<wmma::accumulator, 16, 16, kDepth, float>;

  template <class Use, class Layout>
  struct Operand {
    wmma::fragment<Use, 16, 16, kDepth, wmma::precision::tf32, Layout> values, rest;

    __device__ void load(const void* first, int pitch) {
      wmma::load_matrix_sync(values, static_cast<const float*>(first), pitch);
#pragma unroll
      for (int i = 0; i < values.num_elements; ++i) {
        const float value = values.x[i];
        values.x[i] = wmma::__float_to_tf32(value);
        rest.x[i] = wmma::__float_to_tf32(value - values.x[i]);
      }
    }
  };

  template <class Left, class Right>
  __device__ static void multiply(const Left& left, const Right& right, Sum& sum) {
    // The cross products are summed separately, so that swapping left and right gives the same
    // bits. Equal tokens then tie, whether they come before or after the token they are compared
    // with.
    Sum first, second;
    wmma::fill_fragment(first, 0.0F);
    wmma::fill_fragment(second, 0.0F);
    wmma::mma_sync(first, left.rest, right.values, first);
    wmma::mma_sync(second, left.values, right.rest, second);
#pragma unroll
    for (int e = 0; e < Sum::num_elements; ++e) sum.x[e] += first.x[e] + second.x[e];
    wmma::mma_sync(sum, left.values, right.values, sum);
  }
};

template <class T>
struct MmaOf;
template <>
struct MmaOf<Bfloat16> : HalfMma<__nv_bfloat16> {};
template <>
struct MmaOf<Float16> : HalfMma<__half> {};
template <>
struct MmaOf<float> : FloatMma {};

// Accumulates over slices of the features: on tensor cores throughout, or (kAddsSlices) on tensor
// cores only within a slice.
template <class T>
class WarpProduct {
 public:
  __device__ WarpProduct() { clear(sums_); }

  // Adds kWidth elements of 32 row and 32 column tokens; tokens are `pitch` elements apart.
  template <int kWidth>
  __device__ void add(const T* rows, const T* columns, int pitch) {
    if constexpr (!Mma::kAddsSlices) {
      multiply<kWidth>(rows, columns, pitch, sums_);
      return;
    }
    Sums slice;
    clear(slice);
    multiply<kWidth>(rows, columns, pitch, slice);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < Mma::Sum::num_elements; ++e) sums_[i].x[e] += slice[i].x[e];
    }
  }

  __device__ void store(float* dots, int pitch) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      wmma::store_matrix_sync(dots + i / 2 * 16 * pitch + i % 2 * 16, sums_[i], pitch,
                              wmma::mem_row_major);
    }
  }

 private:
  using Mma = MmaOf<T>;
  using Sums = typename Mma::Sum[4];  // 2 x 2 fragments

  __device__ static void clear(Sums& sums) {
#pragma unroll
    for (auto& sum : sums) wmma::fill_fragment(sum, 0.0F);
  }

  template <int kWidth>
  __device__ static void multiply(const T* rows, const T* columns, int pitch, Sums& sums) {
#pragma unroll Mma::kUnroll
    for (int k = 0; k < kWidth; k += Mma::kDepth) {
      typename Mma::template Operand<wmma::matrix_a, wmma::row_major> left[2];
      typename Mma::template Operand<wmma::matrix_b, wmma::col_major> right[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        left[i].load(rows + i * 16 * pitch + k, pitch);
        right[i].load(columns + i * 16 * pitch + k, pitch);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) Mma::multiply(left[i / 2], right[i % 2], sums[i]);
    }
  }

  Sums sums_;
};

}  // namespace clasp::cuda
