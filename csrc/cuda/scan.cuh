// Greedy completion from the matrix of similarities: one thread block per image.
#pragma once

#include <cstdint>

#include "cuda/block.cuh"
#include "cuda/block_output.cuh"
#include "cuda/block_scan.cuh"
#include "cuda/image_budget.h"
#include "cuda/ranking.cuh"
#include "cuda/similarities.cuh"
#include "cuda/tensors.h"

namespace clasp::cuda {

struct Outputs {
  int64_t* indices;  // [B, width]
  bool* is_pivot;    // [B, width]
  int64_t* counts;   // [B]
  int64_t width;

  CLASP_DEVICE SelectionRow row(int64_t image) const {
    return {indices + image * width, is_pivot + image * width, counts + image, width};
  }
};

// The minimum number of blocks per multiprocessor; 0 for none. With weights, it leaves 128
// registers to each thread. Without it, a block of 256 threads takes a few more, and half as many
// blocks fit.
template <int kThreads, bool kWeighted>
inline constexpr int kScanBlocks = kWeighted ? 512 / kThreads : 0;

template <int kThreads, int kItems, bool kWeighted>
__global__ __launch_bounds__(kThreads, kScanBlocks<kThreads, kWeighted>) void complete_kernel(
    SimilarityBatch similarities, int32_t num_tokens, Selected<int64_t> selected, Mask valid,
    Weights weights, int64_t first_image, int64_t* picks, int64_t num_picks) {
  __shared__ typename Block<kThreads, kItems>::Shared shared;
  Block<kThreads, kItems> block(shared);
  const int64_t image = first_image + blockIdx.x;
  int64_t* row = picks + image * num_picks;
  const int32_t count = complete<kWeighted>(
      block, similarities.rows(blockIdx.x, num_tokens),
      [&](int64_t slot) { return selected.at(image, slot, num_tokens); }, selected.width,
      num_picks < num_tokens ? static_cast<int32_t>(num_picks) : num_tokens,
      [&](int32_t n) { return valid.at(image, n); },
      [&](int32_t n) { return weights.at(image, n); },
      [&](int thread, int32_t step, int32_t n) {
        if (thread == 0) row[step] = n;
      });
  for (int64_t step = count + threadIdx.x; step < num_picks; step += kThreads) row[step] = -1;
}

template <int kThreads, int kItems, bool kWeighted>
__global__ __launch_bounds__(kThreads, kScanBlocks<kThreads, kWeighted>) void select_kernel(
    SimilarityBatch similarities, Ranking ranking, Weights weights, int64_t first_image,
    Outputs outputs) {
  constexpr int kWords = kThreads * kItems / 32;
  __shared__ typename Block<kThreads, kItems>::Shared shared;
  __shared__ uint32_t kept[kWords];
  __shared__ uint32_t pivot_bits[kWords];
  __shared__ int32_t totals[kThreads];
  Block<kThreads, kItems> block(shared);
  const KeptTokens tokens{kept, pivot_bits, kWords};
  const int64_t image = first_image + blockIdx.x;
  const int32_t num_tokens = ranking.num_tokens;
  const ImageBudget budget = ImageBudget::of(ranking.budget, ranking.pivot_counts, image);
  const int32_t* pivots = ranking.pivots + image * ranking.width;

  for (int w = threadIdx.x; w < kWords; w += kThreads) kept[w] = pivot_bits[w] = 0;
  __syncthreads();
  mark_known(block, ranking, image, budget, tokens);
  __syncthreads();
  complete<kWeighted>(
      block, similarities.rows(blockIdx.x, num_tokens), [&](int64_t slot) { return pivots[slot]; },
      budget.pivots, budget.picks(num_tokens),
      [&](int32_t n) { return ranking.valid.at(image, n); },
      [&](int32_t n) { return weights.at(image, n); },
      [&](int thread, int32_t, int32_t n) {
        if (thread == 0) kept[n / 32] |= 1U << n % 32;
      });
  __syncthreads();
  write_selection(block, tokens, totals, outputs.row(image));
}

}  // namespace clasp::cuda
