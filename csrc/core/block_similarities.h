// A finished tile of the similarity matrix goes to memory, twice: as it is and transposed. So the
// matrix is symmetric to the bit, and each of its rows can be read as one. Block is as in
// block_ranking.h.
#pragma once

#include <cstdint>

#include "core/cosine.h"
#include "core/host_device.h"
#include "core/tile_pairs.h"

namespace clasp {

// The similarities of one image, [N, row_stride], to be written.
struct SimilarityMatrix {
  float* data;
  int64_t row_stride;
  int64_t num_tokens;
};

// `dots` holds the dot products of tokens pair.row * kTile + r and pair.column * kTile + c at
// [r * stride + c]; `norms` those of the row's tokens, then those of the column's.
template <int kTile, class Block>
CLASP_DEVICE void store_similarities(Block& block, const float* dots, int stride,
                                     const float* norms, TilePair pair,
                                     const SimilarityMatrix& matrix) {
  const int64_t first_row = int64_t{pair.row} * kTile;
  const int64_t first_column = int64_t{pair.column} * kTile;
  block.each([&](int thread) {
    for (int e = thread; e < kTile * kTile; e += Block::kThreads) {
      const int r = e / kTile;
      const int c = e % kTile;
      if (first_row + r >= matrix.num_tokens || first_column + c >= matrix.num_tokens) continue;
      matrix.data[(first_row + r) * matrix.row_stride + first_column + c] =
          cosine(dots[r * stride + c], norms[r], norms[kTile + c]);
    }
    if (pair.row == pair.column) return;
    // Neighbouring threads write neighbours here too.
    for (int e = thread; e < kTile * kTile; e += Block::kThreads) {
      const int c = e / kTile;
      const int r = e % kTile;
      if (first_row + r >= matrix.num_tokens || first_column + c >= matrix.num_tokens) continue;
      matrix.data[(first_column + c) * matrix.row_stride + first_row + r] =
          cosine(dots[r * stride + c], norms[r], norms[kTile + c]);
    }
  });
}

}  // namespace clasp
