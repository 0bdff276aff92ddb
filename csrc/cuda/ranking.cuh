// Finds the pivots of each image, best first.
#pragma once

#include <cstdint>

#include "cuda/block.cuh"
#include "cuda/block_output.cuh"
#include "cuda/block_ranking.cuh"
#include "cuda/image_budget.h"
#include "cuda/tensors.h"
#include "shared/order.h"

namespace clasp::cuda {

inline constexpr int kRankThreads = 128;

struct Ranking {
  Salience salience;
  Mask valid;
  Counts budget;
  Counts pivot_counts;
  int32_t num_tokens;
  int64_t width;
  int32_t* pivots;  // [B, width]

  // Number of kRankThreads blocks per image. At least one, which writes -1 if there are no pivots.
  CLASP_HOST_DEVICE int32_t num_blocks() const {
    const int32_t blocks = (num_tokens + kRankThreads - 1) / kRankThreads;
    return blocks > 0 ? blocks : 1;
  }

  CLASP_DEVICE uint32_t rank(int64_t image, int32_t n) const {
    return valid.at(image, n) ? descending_rank(salience.at(image, n)) : kRankOfInvalid;
  }
};

// Marks the tokens that are kept without any comparison: the pivots, and all valid tokens if the
// budget has room for them. Synchronize as for mark_pivots in cuda/block_output.cuh.
template <class Block>
__device__ void mark_known(Block& block, const Ranking& ranking, int64_t image,
                           const ImageBudget& budget, const KeptTokens& tokens) {
  mark_pivots(block, ranking.pivots + image * ranking.width, budget.pivots, tokens);
  if (budget.keeps_all(ranking.num_tokens)) {
    mark_kept(
        block, ranking.num_tokens, [&](int32_t n) { return ranking.valid.at(image, n); }, tokens);
  }
}

// Requires a block of kRankThreads threads.
__device__ inline void rank_tokens(const Ranking& ranking, int64_t image, int32_t index,
                                   uint64_t* keys) {
  const Block<kRankThreads, 1> block;
  const int64_t num_pivots = ImageBudget::of(ranking.budget, ranking.pivot_counts, image).pivots;
  rank_block(block, index * kRankThreads, ranking.num_tokens,
             [&](int32_t n) { return ranking.rank(image, n); }, keys,
             {ranking.pivots + image * ranking.width, num_pivots, ranking.width});
}

static __global__ __launch_bounds__(kRankThreads) void rank_kernel(Ranking ranking,
                                                                   int64_t first_image,
                                                                   unsigned blocks_per_image) {
  __shared__ uint64_t keys[kRankThreads];
  rank_tokens(ranking, first_image + blockIdx.x / blocks_per_image,
              static_cast<int32_t>(blockIdx.x % blocks_per_image), keys);
}

}  // namespace clasp::cuda
