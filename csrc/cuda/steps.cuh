// Greedy completion with a launch a step, for images whose similarities would take too much memory:
// each step compares every token with the one picked last, and the blocks agree on the next by the
// smallest of their keys, whichever order they come in.
#pragma once

#include <cstdint>

#include "core/block_cover.h"
#include "core/block_output.h"
#include "core/cosine.h"
#include "core/image_budget.h"
#include "cuda/block.cuh"
#include "cuda/ranking.cuh"
#include "cuda/scan.cuh"
#include "cuda/tensors.h"
#include "cuda/workspace.h"

namespace clasp::cuda {

inline constexpr int kStepThreads = 256;
inline constexpr int kStepTokens = 32;  // of a block
inline constexpr int kFinishThreads = 256;

// What the steps of a wave of images know.
struct Progress {
  float* norms;          // [B, N]
  float* covered;        // [B, N]
  uint8_t* free;         // [B, N]
  uint64_t* keys;        // [B, num_steps] of the picks
  uint32_t* kept;        // [B, num_words(N)]
  uint32_t* pivot_bits;  // [B, num_words(N)]
  int64_t num_tokens;
  int64_t num_steps;

  // In memory that `layout` hands out.
  static Progress in(Layout& layout, int64_t num_images, int64_t num_tokens, int64_t num_steps) {
    const int64_t tokens = num_images * num_tokens;
    const int64_t words = num_images * num_words(num_tokens);
    return {
        .norms = layout.add<float>(tokens),
        .covered = layout.add<float>(tokens),
        .free = layout.add<uint8_t>(tokens),
        .keys = layout.add<uint64_t>(num_images * num_steps),
        .kept = layout.add<uint32_t>(words),
        .pivot_bits = layout.add<uint32_t>(words),
        .num_tokens = num_tokens,
        .num_steps = num_steps,
    };
  }
};

template <class T, bool kAligned>
__device__ float warp_dot(const Features<T>& features, const T* a, const T* b) {
  constexpr int kElements = kAligned ? 16 / sizeof(T) : 1;
  const int lane = threadIdx.x % kWarpSize;
  float sum = 0.0F;
#pragma unroll 2
  for (int64_t d = lane * kElements; d < features.dim; d += kWarpSize * kElements) {
    T left[kElements], right[kElements];
    if constexpr (kAligned) {
      const uint4 loaded_left = *reinterpret_cast<const uint4*>(a + d);
      const uint4 loaded_right = *reinterpret_cast<const uint4*>(b + d);
      memcpy(left, &loaded_left, 16);
      memcpy(right, &loaded_right, 16);
    } else {
      left[0] = a[d * features.column_stride];
      right[0] = b[d * features.column_stride];
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) sum += to_float(left[e]) * to_float(right[e]);
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, distance);
  }
  return sum;
}

template <class T, bool kAligned>
__global__ __launch_bounds__(kStepThreads) void prepare_kernel(Features<T> features, Mask valid,
                                                               Progress progress,
                                                               int64_t first_image,
                                                               int64_t blocks_per_image) {
  const int64_t slot = blockIdx.x / blocks_per_image;
  const int64_t index = blockIdx.x % blocks_per_image;
  const int64_t image = first_image + slot;
  const int64_t num_tokens = features.num_tokens;
  Block<kStepThreads, 1>::Shared unused;
  const Block<kStepThreads, 1> block(unused);
  const int64_t first = index * kStepTokens;
  const int64_t last = first + kStepTokens < num_tokens ? first + kStepTokens : num_tokens;
  block.each_warp(first, last, [&](int64_t n, bool is_leader) {
    const T* row = features.row(image, n);
    const float norm = sqrtf(warp_dot<T, kAligned>(features, row, row));
    if (!is_leader) return;
    progress.norms[slot * num_tokens + n] = norm;
    progress.covered[slot * num_tokens + n] = -infinity();
    progress.free[slot * num_tokens + n] = valid.at(image, n) ? 1 : 0;
  });
  const int64_t stride = blocks_per_image * kStepThreads;
  const int64_t words = num_words(num_tokens);
  for (int64_t i = index * kStepThreads + threadIdx.x; i < progress.num_steps; i += stride) {
    progress.keys[slot * progress.num_steps + i] = kRetired;
  }
  for (int64_t i = index * kStepThreads + threadIdx.x; i < words; i += stride) {
    progress.kept[slot * words + i] = 0;
    progress.pivot_bits[slot * words + i] = 0;
  }
}

// Step 0 compares with the tokens selected before, each other one with the pick of the one before.
template <class T, bool kAligned, class Index>
__global__ __launch_bounds__(kStepThreads) void cover_kernel(Features<T> features,
                                                             Selected<Index> selected,
                                                             Progress progress, int64_t first_image,
                                                             int64_t blocks_per_image,
                                                             int64_t step) {
  const int64_t slot = blockIdx.x / blocks_per_image;
  const int64_t image = first_image + slot;
  const int64_t num_tokens = features.num_tokens;
  uint64_t* keys = progress.keys + slot * progress.num_steps;
  const uint64_t latest = step == 0 ? 0 : keys[step - 1];
  if (latest == kRetired) return;

  __shared__ typename Block<kStepThreads, 1>::Shared shared;
  Block<kStepThreads, 1> block(shared);
  const float* norms = progress.norms + slot * num_tokens;
  const int64_t first = blockIdx.x % blocks_per_image * kStepTokens;
  const int64_t last = first + kStepTokens < num_tokens ? first + kStepTokens : num_tokens;
  const uint64_t warp_best = cover_tokens(
      block, first, last, step == 0 ? selected.width : 1,
      [&](int64_t i) { return step == 0 ? selected.at(image, i, num_tokens) : key_index(latest); },
      [&](int64_t n, int64_t other) {
        return cosine(
            warp_dot<T, kAligned>(features, features.row(image, n), features.row(image, other)),
            norms[n], norms[other]);
      },
      {progress.covered + slot * num_tokens, progress.free + slot * num_tokens});
  const uint64_t best = block.minimum([&](int) { return warp_best; });
  if (threadIdx.x == 0 && best != kRetired) {
    atomicMin(reinterpret_cast<unsigned long long*>(keys + step),
              static_cast<unsigned long long>(best));
  }
}

static_assert(sizeof(unsigned long long) == sizeof(uint64_t));

static __global__ __launch_bounds__(kFinishThreads) void finish_picks_kernel(Progress progress,
                                                                             int64_t first_image,
                                                                             int64_t* picks) {
  const uint64_t* keys = progress.keys + blockIdx.x * progress.num_steps;
  int64_t* row = picks + (first_image + blockIdx.x) * progress.num_steps;
  for (int64_t step = threadIdx.x; step < progress.num_steps; step += kFinishThreads) {
    row[step] = keys[step] == kRetired ? -1 : key_index(keys[step]);
  }
}

static __global__ __launch_bounds__(kFinishThreads) void finish_selection_kernel(
    Progress progress, Ranking ranking, int64_t first_image, Outputs outputs) {
  __shared__ int32_t totals[kFinishThreads];
  const int64_t image = first_image + blockIdx.x;
  const int64_t words = num_words(progress.num_tokens);
  const ImageBudget budget = ImageBudget::of(ranking.budget, ranking.pivot_counts, image);
  uint32_t* kept = progress.kept + blockIdx.x * words;
  uint32_t* pivot_bits = progress.pivot_bits + blockIdx.x * words;
  const int32_t* pivots = ranking.pivots + image * ranking.width;
  const uint64_t* keys = progress.keys + blockIdx.x * progress.num_steps;
  for (int64_t slot = threadIdx.x; slot < budget.pivots; slot += kFinishThreads) {
    const int32_t n = pivots[slot];
    if (n < 0) continue;
    atomicOr(&kept[n / 32], 1U << n % 32);
    atomicOr(&pivot_bits[n / 32], 1U << n % 32);
  }
  // Later steps are those of images with larger budgets.
  for (int64_t step = threadIdx.x; step < budget.tokens - budget.pivots; step += kFinishThreads) {
    if (keys[step] == kRetired) continue;
    const int64_t n = key_index(keys[step]);
    atomicOr(&kept[n / 32], 1U << n % 32);
  }
  __syncthreads();
  Block<kFinishThreads, 1>::Shared unused;
  Block<kFinishThreads, 1> block(unused);
  write_selection(block, kept, pivot_bits, words, totals, outputs.row(image));
}

}  // namespace clasp::cuda
