// Matrix fragments: every lane has all of them.
#pragma once

#include "core/scalar.h"
#include "simt.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
}  // namespace precision
enum layout_t { mem_row_major };

template <class Use, int M, int N, int K>
inline constexpr int kSize = M * N;
template <int M, int N, int K>
inline constexpr int kSize<matrix_a, M, N, K> = M * K;
template <int M, int N, int K>
inline constexpr int kSize<matrix_b, M, N, K> = K * N;

// matrix_a as [M, K], matrix_b as [N, K], sums as [M, N].
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int num_elements = kSize<Use, M, N, K>;
  float x[num_elements];
};

template <class Fragment>
void fill_fragment(Fragment& fragment, float value) {
  for (float& element : fragment.x) element = value;
}

template <class Use, int M, int N, int K, class T, class Layout, class Element>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& fragment, const Element* from,
                      unsigned pitch) {
  static_assert(std::is_same_v<Layout, row_major> == std::is_same_v<Use, matrix_a>);
  simt::check_alignment(from, 32);
  if (pitch * sizeof(Element) % 16 != 0) simt::fail("rows of a matrix are not aligned");
  for (int i = 0; i < fragment.num_elements; ++i) {
    fragment.x[i] = clasp::to_float(from[i / K * pitch + i % K]);
  }
  __syncwarp();
}

inline float __float_to_tf32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // To the nearest of ten bits, ties away from zero.
  return std::bit_cast<float>((bits + 0x1000U) & ~0x1FFFU);
}

template <int M, int N, int K, class T, class Left, class Right>
void mma_sync(fragment<accumulator, M, N, K, float>& sum,
              const fragment<matrix_a, M, N, K, T, Left>& a,
              const fragment<matrix_b, M, N, K, T, Right>& b,
              const fragment<accumulator, M, N, K, float>& start) {
  for (int i = 0; i < M * N; ++i) {
    sum.x[i] = start.x[i];
    for (int k = 0; k < K; ++k) sum.x[i] += a.x[i / N * K + k] * b.x[i % N * K + k];
  }
  __syncwarp();
}

template <int M, int N, int K>
void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& sum, unsigned pitch,
                       layout_t) {
  simt::check_alignment(to, 32);
  __syncwarp();
  if (simt::block->current % simt::kWarp == 0) {
    for (int i = 0; i < M * N; ++i) to[i / N * pitch + i % N] = sum.x[i];
  }
  __syncwarp();
}

}  // namespace nvcuda::wmma
