// Emulates matrix fragments: each lane holds every 32nd element. The operations need all lanes of a
// warp, but do not order memory accesses.
#pragma once

#include "shared/scalar.h"
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

// Shapes: matrix_a is [M, K], matrix_b is [N, K], sums are [M, N].
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int num_elements = kSize<Use, M, N, K> / simt::kWarp;
  float x[num_elements];
};

// Returns the position in its matrix of an element of the calling lane.
inline int place_of(int element) {
  return element * simt::kWarp + simt::block->current % simt::kWarp;
}

inline void converge() {
  [[maybe_unused]] const simt::races::Paused paused;
  simt::block->wait(simt::block->warp());
}

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
  for (int e = 0; e < fragment.num_elements; ++e) {
    const int i = place_of(e);
    fragment.x[e] = clasp::to_float(from[i / K * pitch + i % K]);
  }
  converge();
}

inline float __float_to_tf32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // Rounds to the nearest value with 10 mantissa bits, ties away from zero.
  return std::bit_cast<float>((bits + 0x1000U) & ~0x1FFFU);
}

template <int M, int N, int K, class T, class Left, class Right>
void mma_sync(fragment<accumulator, M, N, K, float>& sum,
              const fragment<matrix_a, M, N, K, T, Left>& a,
              const fragment<matrix_b, M, N, K, T, Right>& b,
              const fragment<accumulator, M, N, K, float>& start) {
  struct Operands {
    float a[M * K / simt::kWarp], b[N * K / simt::kWarp];
  } own;
  memcpy(own.a, a.x, sizeof(own.a));
  memcpy(own.b, b.x, sizeof(own.b));
  simt::block->with_all_lanes(own, [&](const auto& lanes) {
    for (int e = 0; e < sum.num_elements; ++e) {
      const int row = place_of(e) / N * K;
      const int column = place_of(e) % N * K;
      float total = start.x[e];
      for (int k = 0; k < K; ++k) {
        const int left = row + k;
        const int right = column + k;
        total += lanes(left % simt::kWarp).a[left / simt::kWarp] *
                 lanes(right % simt::kWarp).b[right / simt::kWarp];
      }
      sum.x[e] = total;
    }
  });
}

template <int M, int N, int K>
void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& sum, unsigned pitch,
                       layout_t) {
  simt::check_alignment(to, 32);
  for (int e = 0; e < sum.num_elements; ++e) {
    const int i = place_of(e);
    to[i / N * pitch + i % N] = sum.x[e];
  }
  converge();
}

}  // namespace nvcuda::wmma
