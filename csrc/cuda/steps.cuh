// Greedy completion with one launch per step, for images whose similarity matrix would take too
// much memory. Each step compares every token with the last pick. The blocks agree on the next pick
// by an atomic minimum of their keys, which does not depend on their order.
#pragma once

#include <cstdint>

#include "cuda/block.cuh"
#include "cuda/block_cover.cuh"
#include "cuda/block_output.cuh"
#include "cuda/image_budget.h"
#include "cuda/layout.h"
#include "cuda/ranking.cuh"
#include "cuda/scan.cuh"
#include "cuda/tensors.h"
#include "shared/cosine.h"
#include "shared/weights.h"

namespace clasp::cuda {

inline constexpr int kStepThreads = 256;
inline constexpr int kStepTokens = 32;  // per block
inline constexpr int kStepBlocks = 2;   // minimum number of blocks per multiprocessor
inline constexpr int kFinishThreads = 256;

// The state of a wave of images between steps.
struct Progress {
  float* norms;          // [B, N]
  float* covered;        // [B, N]
  float* weights;        // [B, N], as weights_kernel writes them; null without weights
  uint8_t* free;         // [B, N]
  uint64_t* keys;        // [B, num_steps], the keys of the picks
  int32_t* num_picks;    // [B], at most num_steps
  uint32_t* kept;        // [B, num_words(N)]
  uint32_t* pivot_bits;  // [B, num_words(N)]
  int32_t num_tokens;
  int32_t num_steps;

  // Takes the memory from `layout`.
  static Progress in(Layout& layout, int64_t num_images, int32_t num_tokens, int32_t num_steps,
                     bool is_weighted) {
    const int64_t tokens = num_images * num_tokens;
    const int64_t words = num_images * num_words(num_tokens);
    return {
        .norms = layout.add<float>(tokens),
        .covered = layout.add<float>(tokens),
        .weights = is_weighted ? layout.add<float>(tokens) : nullptr,
        .free = layout.add<uint8_t>(tokens),
        .keys = layout.add<uint64_t>(num_images * num_steps),
        .num_picks = layout.add<int32_t>(num_images),
        .kept = layout.add<uint32_t>(words),
        .pivot_bits = layout.add<uint32_t>(words),
        .num_tokens = num_tokens,
        .num_steps = num_steps,
    };
  }

  CLASP_DEVICE Coverage coverage(unsigned slot) const {
    const int64_t first = int64_t{slot} * num_tokens;
    return {covered + first, free + first};
  }
  CLASP_DEVICE float* norms_of(unsigned slot) const { return norms + int64_t{slot} * num_tokens; }
  CLASP_DEVICE const float* weights_of(unsigned slot) const {
    return weights + int64_t{slot} * num_tokens;
  }
  CLASP_DEVICE uint64_t* keys_of(unsigned slot) const { return keys + int64_t{slot} * num_steps; }
  CLASP_DEVICE KeptTokens kept_of(unsigned slot) const {
    const int32_t words = num_words(num_tokens);
    return {kept + int64_t{slot} * words, pivot_bits + int64_t{slot} * words, words};
  }
};

// Each lane takes 16 bytes of elements at a time, in one load if aligned. The order of summation is
// therefore the same for aligned and unaligned features.
template <class T, bool kAligned>
__device__ float warp_dot(const Features<T>& features, const T* a, const T* b) {
  constexpr int kElements = 16 / sizeof(T);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float sum = 0.0F;
#pragma unroll(kAligned ? 2 : 1)
  for (int32_t d = lane * kElements; d < features.dim; d += kWarpSize * kElements) {
    T left[kElements], right[kElements];
    if constexpr (kAligned) {
      const uint4 loaded_left = *reinterpret_cast<const uint4*>(a + d);
      const uint4 loaded_right = *reinterpret_cast<const uint4*>(b + d);
      memcpy(left, &loaded_left, 16);
      memcpy(right, &loaded_right, 16);
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        const bool inside = d + e < features.dim;
        left[e] = inside ? a[(d + e) * features.column_stride] : T{};
        right[e] = inside ? b[(d + e) * features.column_stride] : T{};
      }
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) sum = fmaf(to_float(left[e]), to_float(right[e]), sum);
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
  }
  return sum;
}

// Computes norms and initializes the state. If `selects`, `ranking` gives the number of picks of
// each image; otherwise every image needs num_steps picks.
template <class T, bool kAligned>
__global__ __launch_bounds__(kStepThreads) void prepare_kernel(Features<T> features, Mask valid,
                                                               Ranking ranking, bool selects,
                                                               Progress progress,
                                                               int64_t first_image,
                                                               unsigned blocks_per_image) {
  const unsigned slot = blockIdx.x / blocks_per_image;
  const auto index = static_cast<int32_t>(blockIdx.x % blocks_per_image);
  const int64_t image = first_image + slot;
  const int32_t num_tokens = features.num_tokens;
  const Block<kStepThreads, 1> block;
  const int32_t first = index * kStepTokens;
  const int32_t last = first + kStepTokens < num_tokens ? first + kStepTokens : num_tokens;
  float* norms = progress.norms_of(slot);
  const Coverage coverage = progress.coverage(slot);
  block.each_warp(first, last, [&](int32_t n, bool is_leader) {
    const T* row = features.row(image, n);
    const float norm = sqrtf(warp_dot<T, kAligned>(features, row, row));
    if (!is_leader) return;
    norms[n] = norm;
    coverage.covered[n] = -infinity();
    coverage.free[n] = valid.at(image, n) ? 1 : 0;
  });

  const int64_t start = int64_t{index} * kStepThreads + threadIdx.x;
  const int64_t stride = int64_t{blocks_per_image} * kStepThreads;
  uint64_t* keys = progress.keys_of(slot);
  for (int64_t i = start; i < progress.num_steps; i += stride) keys[i] = kRetired;
  const KeptTokens tokens = progress.kept_of(slot);
  for (int64_t i = start; i < tokens.words; i += stride) tokens.kept[i] = tokens.pivots[i] = 0;
  if (start == 0) {
    progress.num_picks[slot] =
        selects ? ImageBudget::of(ranking.budget, ranking.pivot_counts, image).picks(num_tokens)
                : progress.num_steps;
  }
}

// Step 0 compares with the initial tokens, each later step with the previous pick.
template <class T, bool kAligned, class Index, bool kWeighted>
__global__ __launch_bounds__(kStepThreads, kStepBlocks) void cover_kernel(
    Features<T> features, Selected<Index> selected, Progress progress, int64_t first_image,
    unsigned blocks_per_image, int32_t step) {
  const unsigned slot = blockIdx.x / blocks_per_image;
  // Other images of the batch may have larger budgets or more valid tokens.
  if (step >= progress.num_picks[slot]) return;
  uint64_t* keys = progress.keys_of(slot);
  const uint64_t latest = step == 0 ? 0 : keys[step - 1];
  if (latest == kRetired) return;

  __shared__ typename Block<kStepThreads, 1>::Shared shared;
  Block<kStepThreads, 1> block(shared);
  const int64_t image = first_image + slot;
  const int32_t num_tokens = features.num_tokens;
  const float* norms = progress.norms_of(slot);
  const int32_t first = static_cast<int32_t>(blockIdx.x % blocks_per_image) * kStepTokens;
  const int32_t last = first + kStepTokens < num_tokens ? first + kStepTokens : num_tokens;
  const uint64_t warp_best = cover_tokens(
      block, first, last, step == 0 ? selected.width : 1,
      [&](int64_t i) {
        return step == 0 ? selected.at(image, i, num_tokens)
                         : static_cast<int32_t>(key_index(latest));
      },
      [&](int32_t n, int32_t other) {
        return cosine(
            warp_dot<T, kAligned>(features, features.row(image, n), features.row(image, other)),
            norms[n], norms[other]);
      },
      [&](int32_t n) { return kWeighted ? progress.weights_of(slot)[n] : kUnweighted; },
      progress.coverage(slot));
  const uint64_t best = block.minimum([&](int) { return warp_best; });
  if (threadIdx.x == 0 && best != kRetired) {
    static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
    atomicMin(reinterpret_cast<unsigned long long*>(keys + step),
              static_cast<unsigned long long>(best));
  }
}

static __global__ __launch_bounds__(kFinishThreads) void finish_picks_kernel(Progress progress,
                                                                             int64_t first_image,
                                                                             int64_t* picks,
                                                                             int64_t width) {
  const uint64_t* keys = progress.keys_of(blockIdx.x);
  int64_t* row = picks + (first_image + blockIdx.x) * width;
  for (int64_t step = threadIdx.x; step < width; step += kFinishThreads) {
    const bool is_pick = step < progress.num_steps && keys[step] != kRetired;
    row[step] = is_pick ? key_index(keys[step]) : -1;
  }
}

static __global__ __launch_bounds__(kFinishThreads, 4) void finish_selection_kernel(
    Progress progress, Ranking ranking, int64_t first_image, Outputs outputs) {
  __shared__ int32_t totals[kFinishThreads];
  const Block<kFinishThreads, 1> block;
  const int64_t image = first_image + blockIdx.x;
  const ImageBudget budget = ImageBudget::of(ranking.budget, ranking.pivot_counts, image);
  const KeptTokens tokens = progress.kept_of(blockIdx.x);
  const uint64_t* keys = progress.keys_of(blockIdx.x);
  mark_known(block, ranking, image, budget, tokens);
  for (int32_t step = threadIdx.x; step < progress.num_steps; step += kFinishThreads) {
    if (keys[step] != kRetired)
      block.set_bit(tokens.kept, static_cast<int32_t>(key_index(keys[step])));
  }
  __syncthreads();
  write_selection(block, tokens, totals, outputs.row(image));
}

}  // namespace clasp::cuda
