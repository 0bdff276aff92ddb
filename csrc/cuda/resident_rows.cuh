// Rows of features that stay in the registers of a block, and their dot products with a few others.
//
// Eight warps share the features of every row: warp w has those of units w, w + 8 and so on, 32
// each. In a warp, lanes 4 g .. 4 g + 3 have rows g, g + 8 and so on, and lane 4 g + q the features
// 8 q .. 8 q + 7 of a unit. For half precision this is a fragment of a tensor core's left operand,
// its features in another order than the hardware numbers them, which is also the order in which
// the other operand comes; a dot product does not mind.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "core/scalar.h"
#include "cuda/block.cuh"
#include "cuda/mma.cuh"
#include "cuda/tensors.h"

namespace clasp::cuda {

inline constexpr int kRowWarps = 8;
inline constexpr int kRowThreads = kRowWarps * kWarpSize;
inline constexpr int kUnit = 32;      // features
inline constexpr int kChunk = 8;      // features of a lane in a unit
inline constexpr int kGroupRows = 8;  // one a group of four lanes

// Eight features of a row.
template <class T>
struct Chunk {
  static constexpr int kWords = kChunk * static_cast<int>(sizeof(T)) / 4;
  uint32_t words[kWords];

  // From memory that 16 divides.
  __device__ void load(const void* from) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 loaded = static_cast<const uint4*>(from)[i];
      words[4 * i] = loaded.x;
      words[4 * i + 1] = loaded.y;
      words[4 * i + 2] = loaded.z;
      words[4 * i + 3] = loaded.w;
    }
  }

  __device__ void values(float (&values)[kChunk]) const {
    T elements[kChunk];
    memcpy(elements, words, sizeof(words));
#pragma unroll
    for (int e = 0; e < kChunk; ++e) values[e] = to_float(elements[e]);
  }
};

// A few rows in shared memory, zero where there are none and past their end.
template <class T, int kDims>
struct Stage {
  // Eight lanes read 16 bytes each at a time, four of one row and four of the next. Those of a row
  // lie side by side in half precision and twice as far apart in float32; in either case the two
  // rows take all banks between them.
  static constexpr int kPadding = sizeof(T) == 2 ? 64 : 16;
  static constexpr int kPitch = kDims * static_cast<int>(sizeof(T)) + kPadding;
  unsigned char bytes[kGroupRows][kPitch];

  // Rows of `tokens`, of which some may be negative; the block must meet at a barrier afterwards.
  __device__ void load(const Features<T>& features, bool is_aligned, int64_t image,
                       const int32_t* tokens, int num_rows) {
    const int thread = static_cast<int>(threadIdx.x);
    if (is_aligned) {
      constexpr int kElements = 16 / sizeof(T);
      constexpr int kPieces = kDims / kElements;  // of a row
      for (int p = thread; p < num_rows * kPieces; p += kRowThreads) {
        const int32_t token = tokens[p / kPieces];
        const int32_t d = p % kPieces * kElements;
        const bool inside = token >= 0 && d < features.dim;
        // An address that may be read, though it is not.
        const T* piece = inside ? features.row(image, token) + d : features.data;
        __pipeline_memcpy_async(bytes[p / kPieces] + d * sizeof(T), piece, 16, inside ? 0 : 16);
      }
      __pipeline_commit();
      __pipeline_wait_prior(0);
    } else {
      for (int e = thread; e < num_rows * kDims; e += kRowThreads) {
        const int32_t token = tokens[e / kDims];
        const int32_t d = e % kDims;
        T element{};
        if (token >= 0 && d < features.dim) {
          element = features.row(image, token)[d * features.column_stride];
        }
        reinterpret_cast<T*>(bytes[e / kDims])[d] = element;
      }
    }
  }

  __device__ Chunk<T> chunk(int row, int32_t d) const {
    Chunk<T> chunk;
    chunk.load(bytes[row] + d * sizeof(T));
    return chunk;
  }
};

// kRows rows of up to kDims features, compared with kColumns others at a time. A block's other rows
// than the kRows are those others themselves: kAll in all.
template <class T, int kRows, int kDims>
class ResidentRows {
 public:
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kColumns = kHalf ? 8 : 4;
  static constexpr int kAll = kRows + kColumns;
  using Dots = float[kRowWarps][kAll][kColumns];

  // The features of tokens first .. first + count - 1, zero past the last one.
  __device__ void load(const Features<T>& features, bool is_aligned, int64_t image, int32_t first,
                       int32_t count, Stage<T, kDims>& stage, int32_t* tokens) {
    if (is_aligned) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int row = i * kGroupRows + group();
        const T* from = features.row(image, first + (row < count ? row : 0));
#pragma unroll
        for (int u = 0; u < kUnits; ++u) load_chunk(features, from, row < count, u, rows_[i][u]);
      }
      return;
    }
    // By way of shared memory, where loops over features need not be unrolled.
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      if (threadIdx.x < kGroupRows) {
        const int row = i * kGroupRows + static_cast<int>(threadIdx.x);
        tokens[threadIdx.x] = row < count ? first + row : -1;
      }
      __syncthreads();
      stage.load(features, is_aligned, image, tokens, kGroupRows);
      __syncthreads();
#pragma unroll
      for (int u = 0; u < kUnits; ++u) rows_[i][u] = stage.chunk(group(), first_feature(u));
      __syncthreads();
    }
  }

  // Sums of squares over this warp's features, to column 0.
  __device__ void store_squares(Dots& dots) const {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      float sum = 0.0F;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        float values[kChunk];
        rows_[i][u].values(values);
#pragma unroll
        for (int e = 0; e < kChunk; ++e) sum = fmaf(values[e], values[e], sum);
      }
      sum = sum_of_group(sum);
      if (lane() % 4 == 0) dots[warp()][i * kGroupRows + group()][0] = sum;
    }
  }

  // Dot products over this warp's features with the rows of `stage`; its rows' own come last.
  __device__ void store_dots(const Stage<T, kDims>& stage, Dots& dots) const {
    if constexpr (kHalf) {
      store_products(stage, dots);
    } else {
      store_sums(stage, dots);
    }
  }

 private:
  static constexpr int kGroups = kRows / kGroupRows;
  static constexpr int kUnits = kDims / (kUnit * kRowWarps);
  static_assert(kRows % (kHalf ? 16 : 8) == 0 && kDims % (kUnit * kRowWarps) == 0);

  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }
  __device__ static int group() { return lane() / 4; }
  __device__ static int32_t first_feature(int unit) {
    return (unit * kRowWarps + warp()) * kUnit + lane() % 4 * kChunk;
  }

  __device__ static float sum_of_group(float sum) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
    return sum + __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
  }

  __device__ static void load_chunk(const Features<T>& features, const T* row, bool is_row,
                                    int unit, Chunk<T>& chunk) {
    constexpr int kElements = 16 / sizeof(T);
    const int32_t d = first_feature(unit);
#pragma unroll
    for (int i = 0; i < Chunk<T>::kWords / 4; ++i) {
      const bool inside = is_row && d + i * kElements < features.dim;
      const uint4 loaded =
          inside ? *reinterpret_cast<const uint4*>(row + d + i * kElements) : uint4{};
      chunk.words[4 * i] = loaded.x;
      chunk.words[4 * i + 1] = loaded.y;
      chunk.words[4 * i + 2] = loaded.z;
      chunk.words[4 * i + 3] = loaded.w;
    }
  }

  // Half precision, on tensor cores.
  __device__ void store_products(const Stage<T, kDims>& stage, Dots& dots) const {
    Chunk<T> columns[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) columns[u] = stage.chunk(group(), first_feature(u));
    // Two columns a lane, of rows g and g + 8 of a tile.
    const int column = lane() % 4 * 2;
    const auto store = [&](int row, float left, float right) {
      *reinterpret_cast<float2*>(&dots[warp()][row][column]) = {left, right};
    };
#pragma unroll
    for (int tile = 0; tile < kGroups / 2; ++tile) {
      float sums[4] = {};
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        add_unit(sums, rows_[2 * tile][u], rows_[2 * tile + 1][u], columns[u]);
      }
      store(tile * 16 + group(), sums[0], sums[1]);
      store(tile * 16 + group() + 8, sums[2], sums[3]);
    }
    float sums[4] = {};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) add_unit(sums, columns[u], Chunk<T>{}, columns[u]);
    store(kRows + group(), sums[0], sums[1]);
  }

  __device__ static void add_unit(float (&sums)[4], const Chunk<T>& upper, const Chunk<T>& lower,
                                  const Chunk<T>& columns) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int w = 2 * half;
      multiply_add<T>(sums,
                      {upper.words[w], lower.words[w], upper.words[w + 1], lower.words[w + 1]},
                      {columns.words[w], columns.words[w + 1]});
    }
  }

  // float32, whose products tensor cores do not compute in one piece.
  __device__ void store_sums(const Stage<T, kDims>& stage, Dots& dots) const {
    float sums[kGroups + 1][kColumns] = {};
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const Chunk<T> own = stage.chunk(group() % kColumns, first_feature(u));
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const Chunk<T> column = stage.chunk(c, first_feature(u));
#pragma unroll
        for (int i = 0; i < kGroups; ++i) add_chunk(sums[i][c], rows_[i][u], column);
        add_chunk(sums[kGroups][c], own, column);
      }
    }
    const int q = lane() % 4;
#pragma unroll
    for (int i = 0; i <= kGroups; ++i) {
      float mine = 0.0F;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float sum = sum_of_group(sums[i][c]);
        mine = q == c ? sum : mine;
      }
      const int row = i * kGroupRows + group();
      if (row < kAll) dots[warp()][row][q] = mine;
    }
  }

  __device__ static void add_chunk(float& sum, const Chunk<T>& row, const Chunk<T>& column) {
    float left[kChunk], right[kChunk];
    row.values(left);
    column.values(right);
#pragma unroll
    for (int e = 0; e < kChunk; ++e) sum = fmaf(left[e], right[e], sum);
  }

  Chunk<T> rows_[kGroups][kUnits];
};

}  // namespace clasp::cuda
