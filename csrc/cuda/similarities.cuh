// All cosine similarities of each image's tokens, and its pivots beside them.
#pragma once

#include <cstdint>

#include "core/block_similarities.h"
#include "core/scalar.h"
#include "core/tile_pairs.h"
#include "cuda/block.cuh"
#include "cuda/matrix_product.cuh"
#include "cuda/ranking.cuh"
#include "cuda/tensors.h"

namespace clasp::cuda {

inline constexpr int kTile = 64;
inline constexpr int kTileThreads = kRankThreads;  // one launch does both
// Bytes of a token that are in shared memory at a time, and from one token to the next: 16 more, so
// that eight neighbours lie in different banks.
inline constexpr int kSliceBytes = 128;
inline constexpr int kSlicePitch = kSliceBytes + 16;
inline constexpr int kChunkBytes = 16;
inline constexpr int kChunksPerToken = kSliceBytes / kChunkBytes;
inline constexpr int kChunksPerThread = kTile * kChunksPerToken / kTileThreads;
inline constexpr int kDotsPitch = kTile + 4;  // floats; fragments are stored to 16-byte multiples

// [B, N, row_stride] of the images of one launch.
struct SimilarityBatch {
  float* data;
  int64_t image_stride;
  int64_t row_stride;
};

template <class T>
inline constexpr int kSliceWidth = kSliceBytes / static_cast<int>(sizeof(T));

// One slice of kTile tokens on its way to shared memory; what is past the last token or feature is
// zero. 16 bytes at a time, and by way of registers, so that the next slice comes while this one is
// multiplied.
template <class T, bool kAligned>
class Slice {
 public:
  __device__ void load(const Features<T>& features, int64_t image, int64_t first, int64_t start) {
    constexpr int kElements = kChunkBytes / sizeof(T);
#pragma unroll
    for (int q = 0; q < kChunksPerThread; ++q) {
      const int64_t n = first + token(q);
      const int64_t d = start + part() * kElements;
      const bool inside = n < features.num_tokens && d < features.dim;
      chunks_[q] = inside ? *reinterpret_cast<const uint4*>(features.row(image, n) + d)
                          : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void store(unsigned char* shared) const {
#pragma unroll
    for (int q = 0; q < kChunksPerThread; ++q) {
      *reinterpret_cast<uint4*>(shared + token(q) * kSlicePitch + part() * kChunkBytes) =
          chunks_[q];
    }
  }

 private:
  __device__ static int token(int q) { return (threadIdx.x + q * kTileThreads) / kChunksPerToken; }
  __device__ static int part() { return threadIdx.x % kChunksPerToken; }

  uint4 chunks_[kChunksPerThread];
};

// Element by element, when it is needed.
template <class T>
class Slice<T, false> {
 public:
  __device__ void load(const Features<T>& features, int64_t image, int64_t first, int64_t start) {
    features_ = &features;
    image_ = image;
    first_ = first;
    start_ = start;
  }

  __device__ void store(unsigned char* shared) const {
#pragma unroll 4
    for (int e = threadIdx.x; e < kTile * kSliceWidth<T>; e += kTileThreads) {
      const int token = e / kSliceWidth<T>;
      const int column = e % kSliceWidth<T>;
      const int64_t n = first_ + token;
      const int64_t d = start_ + column;
      T element{};
      if (n < features_->num_tokens && d < features_->dim) {
        element = features_->row(image_, n)[d * features_->column_stride];
      }
      reinterpret_cast<T*>(shared + token * kSlicePitch)[column] = element;
    }
  }

 private:
  const Features<T>* features_;
  int64_t image_;
  int64_t first_;
  int64_t start_;
};

// The sum of squares of one token's slice.
template <class T>
__device__ float square_of_slice(const unsigned char* token) {
  constexpr int kElements = kChunkBytes / sizeof(T);
  float sum = 0.0F;
#pragma unroll
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

union TileMemory {
  struct {
    unsigned char rows[kTile * kSlicePitch];
    unsigned char columns[kTile * kSlicePitch];
  } slices;
  float dots[kTile * kDotsPitch];
  uint64_t keys[kRankThreads];
};

template <class T, bool kAligned>
__device__ void tile_similarities(const Features<T>& features, int64_t image, TilePair pair,
                                  const SimilarityMatrix& matrix, TileMemory& memory,
                                  float* norms) {
  const int64_t first_row = int64_t{pair.row} * kTile;
  const int64_t first_column = int64_t{pair.column} * kTile;
  const int warp = threadIdx.x / kWarpSize;
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 32;
  const int own = threadIdx.x % kTile;
  // Each thread sums the squares of one token, of the tile's rows or of its columns.
  const unsigned char* own_token =
      (threadIdx.x < kTile ? memory.slices.rows : memory.slices.columns) + own * kSlicePitch;
  auto token = [](const unsigned char* slices, int index) {
    return reinterpret_cast<const T*>(slices + index * kSlicePitch);
  };

  WarpProduct<T> product;
  Slice<T, kAligned> rows, columns;
  float square = 0.0F;
  rows.load(features, image, first_row, 0);
  columns.load(features, image, first_column, 0);
  for (int64_t start = 0; start < features.dim; start += kSliceWidth<T>) {
    rows.store(memory.slices.rows);
    columns.store(memory.slices.columns);
    __syncthreads();
    const int64_t next = start + kSliceWidth<T>;
    rows.load(features, image, first_row, next);
    columns.load(features, image, first_column, next);
    product.template add<kSliceWidth<T>>(token(memory.slices.rows, warp_row),
                                         token(memory.slices.columns, warp_column),
                                         kSlicePitch / static_cast<int>(sizeof(T)));
    square += square_of_slice<T>(own_token);
    __syncthreads();
  }
  norms[threadIdx.x] = sqrtf(square);
  product.store(memory.dots + warp_row * kDotsPitch + warp_column, kDotsPitch);
  __syncthreads();
  Block<kTileThreads, 1>::Shared unused;
  Block<kTileThreads, 1> block(unused);
  store_similarities<kTile>(block, memory.dots, kDotsPitch, norms, pair, matrix);
}

// Blocks of one image: `num_pairs` tiles, then those that rank its tokens, if any.
template <class T, bool kAligned>
__global__ __launch_bounds__(kTileThreads) void similarities_kernel(
    Features<T> features, SimilarityBatch similarities, Ranking ranking, int64_t first_image,
    int64_t num_pairs, int64_t blocks_per_image) {
  static_assert(kTileThreads == 2 * kTile && kTileThreads == 4 * kWarpSize);
  __shared__ __align__(128) TileMemory memory;
  __shared__ float norms[2 * kTile];
  const int64_t slot = blockIdx.x / blocks_per_image;
  const int64_t index = blockIdx.x % blocks_per_image;
  const int64_t image = first_image + slot;
  if (index < num_pairs) {
    const SimilarityMatrix matrix{similarities.data + slot * similarities.image_stride,
                                  similarities.row_stride, features.num_tokens};
    tile_similarities<T, kAligned>(features, image, tile_pair(index), matrix, memory, norms);
  } else {
    rank_tokens(ranking, image, index - num_pairs, memory.keys);
  }
}

}  // namespace clasp::cuda
