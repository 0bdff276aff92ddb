// A finished tile of the similarity matrix goes to memory, twice: as it is and transposed, of one
// on the diagonal the upper half. So the matrix is symmetric to the bit, whatever the order in
// which a dot product was summed, and each of its rows can be read as one. Block is as in
// block_ranking.cuh.
#pragma once

#include <cstdint>

#include "cuda/tile_pairs.h"
#include "shared/cosine.h"
#include "shared/host_device.h"

namespace clasp {

// The similarities of one image, [N, row_stride], to be written.
struct SimilarityMatrix {
  float* data;
  int64_t row_stride;
  int32_t num_tokens;
};

// `dots` holds the dot products of tokens pair.row * kTile + r and pair.column * kTile + c at
// [r * stride + c]; `norms` those of the row's tokens, then those of the column's.
template <int kTile, class Block>
CLASP_DEVICE void store_similarities(Block& block, const float* dots, int stride,
                                     const float* norms, TilePair pair,
                                     const SimilarityMatrix& matrix) {
  const int32_t first_row = pair.row * kTile;
  const int32_t first_column = pair.column * kTile;
  const int32_t num_rows = matrix.num_tokens - first_row;  // more than kTile if it is not the last
  const int32_t num_columns = matrix.num_tokens - first_column;
  const bool is_diagonal = pair.row == pair.column;
  const auto similarity = [&](int r, int c) {
    return cosine(dots[r * stride + c], norms[r], norms[kTile + c]);
  };
  float* tile = matrix.data + first_row * matrix.row_stride + first_column;
  float* mirrored = matrix.data + first_column * matrix.row_stride + first_row;
  block.each([&](int thread) {
    CLASP_DEVICE_UNROLL_4
    for (int e = thread; e < kTile * kTile; e += Block::kThreads) {
      const int r = e / kTile;
      const int c = e % kTile;
      if (r >= num_rows || c >= num_columns || (is_diagonal && c < r)) continue;
      tile[r * matrix.row_stride + c] = similarity(r, c);
    }
    // Neighbouring threads write neighbours here too.
    CLASP_DEVICE_UNROLL_4
    for (int e = thread; e < kTile * kTile; e += Block::kThreads) {
      const int c = e / kTile;
      const int r = e % kTile;
      if (r >= num_rows || c >= num_columns || (is_diagonal && c <= r)) continue;
      mirrored[c * matrix.row_stride + r] = similarity(r, c);
    }
  });
}

}  // namespace clasp
