// Stores a finished tile of the similarity matrix and its transpose; of a tile on the diagonal,
// only the upper half is used. The matrix is thus symmetric bit for bit, whatever the order of
// summation within a dot product, and every row is contiguous. Block is as in block_ranking.cuh.
#pragma once

#include <cstdint>

#include "cuda/tile_pairs.h"
#include "shared/cosine.h"
#include "shared/host_device.h"

namespace clasp {

// The output matrix of one image, [N, row_stride].
struct SimilarityMatrix {
  float* data;
  int64_t row_stride;
  int32_t num_tokens;
};

// `dots[r * stride + c]` is the dot product of tokens pair.row * kTile + r and pair.column * kTile
// + c. `norms` holds the norms of the kTile row tokens, then of the kTile column tokens.
template <int kTile, class Block>
CLASP_DEVICE void store_similarities(Block& block, const float* dots, int stride,
                                     const float* norms, TilePair pair,
                                     const SimilarityMatrix& matrix) {
  const int32_t first_row = pair.row * kTile;
  const int32_t first_column = pair.column * kTile;
  const int32_t num_rows = matrix.num_tokens - first_row;  // exceeds kTile except in the last tile
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
    // r varies fastest, so that the mirrored writes are coalesced too.
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
