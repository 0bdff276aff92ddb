// Cosine similarities between all tokens of each image; the pivots are ranked in the same launch.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "cuda/block.cuh"
#include "cuda/block_scan.cuh"
#include "cuda/block_similarities.cuh"
#include "cuda/matrix_product.cuh"
#include "cuda/ranking.cuh"
#include "cuda/tensors.h"
#include "cuda/tile_pairs.h"
#include "shared/scalar.h"

namespace clasp::cuda {

inline constexpr int kTile = 64;
inline constexpr int kTileThreads = kRankThreads;  // the same launch ranks pivots
// Minimum number of blocks per multiprocessor. float32 takes more registers.
template <class T>
inline constexpr int kTileBlocks = sizeof(T) == 4 ? 3 : 4;
// Bytes per token in one slice, and the distance between tokens in shared memory. The 16 bytes of
// padding put eight neighboring tokens into different banks.
inline constexpr int kSliceBytes = 128;
inline constexpr int kSlicePitch = kSliceBytes + 16;
inline constexpr int kChunkBytes = 16;
inline constexpr int kChunksPerToken = kSliceBytes / kChunkBytes;
inline constexpr int kChunksPerThread = kTile * kChunksPerToken / kTileThreads;
inline constexpr int kDotsPitch = kTile + 4;  // floats; wmma stores need a multiple of 16 bytes

// The matrices of the images of one launch, [B, N, row_stride].
struct SimilarityBatch {
  float* data;
  int64_t image_stride;
  int64_t row_stride;

  // The matrix of the image at index `slot` of the launch.
  CLASP_DEVICE SimilarityMatrix matrix(unsigned slot, int32_t num_tokens) const {
    return {data + slot * image_stride, row_stride, num_tokens};
  }
  CLASP_DEVICE SimilarityRows rows(unsigned slot, int32_t num_tokens) const {
    return {data + slot * image_stride, row_stride, num_tokens};
  }
};

template <class T>
inline constexpr int kSliceWidth = kSliceBytes / static_cast<int>(sizeof(T));

// Starts copying a slice of tokens first .. first + kTile - 1 to shared memory, with zeros past the
// last token or feature. If aligned, copies 16 bytes at a time, asynchronously, while the previous
// slice is multiplied; otherwise element by element.
template <class T, bool kAligned>
__device__ void load_slice(const Features<T>& features, int64_t image, int32_t first, int32_t start,
                           unsigned char* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kAligned) {
    constexpr int kElements = kChunkBytes / sizeof(T);
    const int part = thread % kChunksPerToken;
    const int32_t d = start + part * kElements;
    const int first_token = thread / kChunksPerToken;
    constexpr int kTokensApart = kTileThreads / kChunksPerToken;
    const T* row = features.row(image, first + first_token);
#pragma unroll
    for (int q = 0; q < kChunksPerThread; ++q) {
      const int token = first_token + q * kTokensApart;
      const bool inside = first + token < features.num_tokens && d < features.dim;
      // Nothing is read outside the tensor, but the address still has to be valid.
      const T* chunk = inside ? row + d : features.data;
      __pipeline_memcpy_async(shared + token * kSlicePitch + part * kChunkBytes, chunk, kChunkBytes,
                              inside ? 0 : kChunkBytes);
      row += kTokensApart * features.token_stride;
    }
  } else {
#pragma unroll 2
    for (int e = thread; e < kTile * kSliceWidth<T>; e += kTileThreads) {
      const int token = e / kSliceWidth<T>;
      const int column = e % kSliceWidth<T>;
      T element{};
      if (first + token < features.num_tokens && start + column < features.dim) {
        element = features.row(image, first + token)[(start + column) * features.column_stride];
      }
      reinterpret_cast<T*>(shared + token * kSlicePitch)[column] = element;
    }
  }
}

// Returns the sum of squares of one token's slice.
template <class T>
__device__ float square_of_slice(const unsigned char* token) {
  constexpr int kElements = kChunkBytes / sizeof(T);
  float sum = 0.0F;
#pragma unroll 2
  for (int chunk = 0; chunk < kChunksPerToken; ++chunk) {
    T elements[kElements];
    const uint4 loaded = *reinterpret_cast<const uint4*>(token + chunk * kChunkBytes);
    memcpy(elements, &loaded, kChunkBytes);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const float value = to_float(elements[e]);
      sum += value * value;
    }
  }
  return sum;
}

// One slice of the row tokens and the column tokens of a tile.
struct SlicePair {
  unsigned char rows[kTile * kSlicePitch];
  unsigned char columns[kTile * kSlicePitch];
};

union TileMemory {
  SlicePair slices[2];  // one is multiplied while the next is loaded
  float dots[kTile * kDotsPitch];
  uint64_t keys[kRankThreads];
};

template <class T, bool kAligned>
__device__ void tile_similarities(const Features<T>& features, int64_t image, TilePair pair,
                                  const SimilarityMatrix& matrix, TileMemory& memory,
                                  float* norms) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp_row = thread / kWarpSize / 2 * 32;
  const int warp_column = thread / kWarpSize % 2 * 32;
  const bool is_diagonal = pair.row == pair.column;  // rows and columns are the same tokens
  const auto load = [&](int32_t start) {
    SlicePair& slices = memory.slices[start / kSliceWidth<T> % 2];
    load_slice<T, kAligned>(features, image, pair.row * kTile, start, slices.rows);
    if (!is_diagonal) {
      load_slice<T, kAligned>(features, image, pair.column * kTile, start, slices.columns);
    }
    __pipeline_commit();
  };

  WarpProduct<T> product;
  // Each thread sums the squares of one row token or one column token.
  float square = 0.0F;
  if (features.dim > 0) load(0);
  for (int32_t start = 0; start < features.dim; start += kSliceWidth<T>) {
    const int32_t next = start + kSliceWidth<T>;
    if (next < features.dim) {
      load(next);
      __pipeline_wait_prior(1);
    } else {
      __pipeline_wait_prior(0);
    }
    __syncthreads();
    const SlicePair& slices = memory.slices[start / kSliceWidth<T> % 2];
    const unsigned char* columns = is_diagonal ? slices.rows : slices.columns;
    product.template add<kSliceWidth<T>>(
        reinterpret_cast<const T*>(slices.rows + warp_row * kSlicePitch),
        reinterpret_cast<const T*>(columns + warp_column * kSlicePitch),
        kSlicePitch / static_cast<int>(sizeof(T)));
    square +=
        square_of_slice<T>((thread < kTile ? slices.rows : columns) + thread % kTile * kSlicePitch);
    __syncthreads();
  }
  norms[thread] = sqrtf(square);
  product.store(memory.dots + warp_row * kDotsPitch + warp_column, kDotsPitch);
  __syncthreads();
  const Block<kTileThreads, 1> block;
  store_similarities<kTile>(block, memory.dots, kDotsPitch, norms, pair, matrix);
}

// Each image has `num_pairs` blocks for tiles, followed by the blocks that rank its tokens, if any.
template <class T, bool kAligned>
__global__ __launch_bounds__(kTileThreads, kTileBlocks<T>) void similarities_kernel(
    Features<T> features, SimilarityBatch similarities, Ranking ranking, int64_t first_image,
    unsigned num_pairs, unsigned blocks_per_image) {
  static_assert(kTileThreads == 2 * kTile && kTileThreads == 4 * kWarpSize);
  __shared__ __align__(128) TileMemory memory;
  __shared__ float norms[2 * kTile];
  const unsigned slot = blockIdx.x / blocks_per_image;
  const unsigned index = blockIdx.x % blocks_per_image;
  const int64_t image = first_image + slot;
  if (index < num_pairs) {
    tile_similarities<T, kAligned>(features, image, tile_pair(index),
                                   similarities.matrix(slot, features.num_tokens), memory, norms);
  } else {
    rank_tokens(ranking, image, static_cast<int32_t>(index - num_pairs), memory.keys);
  }
}

}  // namespace clasp::cuda
