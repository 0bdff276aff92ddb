// Prepares weights for the steps design.
#pragma once

#include <cstdint>

#include "cuda/block.cuh"
#include "cuda/block_weights.cuh"
#include "cuda/tensors.h"
#include "shared/weights.h"

namespace clasp::cuda {

inline constexpr int kWeightThreads = 256;

// Writes the usable weights [B, N] of a wave, or kUnweighted for all tokens of an image whose valid
// tokens have equal weights. One block per image, because the blocks of a step see only some of the
// tokens.
static __global__ __launch_bounds__(kWeightThreads) void weights_kernel(Weights weights, Mask valid,
                                                                        int32_t num_tokens,
                                                                        int64_t first_image,
                                                                        float* usable) {
  __shared__ typename Block<kWeightThreads, 1>::Shared shared;
  Block<kWeightThreads, 1> block(shared);
  const int64_t image = first_image + blockIdx.x;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  float* row = usable + int64_t{blockIdx.x} * num_tokens;
  typename Block<kWeightThreads, 1>::template PerThread<WeightRange> ranges;
  for (int32_t n = thread; n < num_tokens; n += kWeightThreads) {
    const float weight = weights.at(image, n);
    row[n] = weight;
    if (valid.at(image, n)) ranges.at(thread).add(weight);
  }
  if (!are_equal(block, ranges)) return;
  for (int32_t n = thread; n < num_tokens; n += kWeightThreads) row[n] = kUnweighted;
}

}  // namespace clasp::cuda
