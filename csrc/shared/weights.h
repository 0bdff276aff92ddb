// Weights of tokens, and the ranking keys of greedy completion with weights.
#pragma once

#include <cstdint>

#include "shared/host_device.h"
#include "shared/order.h"

namespace clasp {

// A smaller weight counts as 0, a larger one as the largest. Products of two weights and a
// similarity then neither overflow float32 nor become subnormal.
inline constexpr float kSmallestWeight = 0x1p-50F;
inline constexpr float kLargestWeight = 0x1p50F;

// Instead of a weight: the image has none, or all its valid tokens have the same.
inline constexpr float kUnweighted = -1.0F;

// The rank of a token of weight 0: worse than that of any gain, better than kRetired.
inline constexpr uint32_t kRankOfWeightless = 0xFFFFFFFEU;

// NaN and negative weights count as 0.
CLASP_HOST_DEVICE inline float usable_weight(float weight) {
  if (!(weight >= kSmallestWeight)) return 0.0F;
  return weight < kLargestWeight ? weight : kLargestWeight;
}

// The key of the next pick is the smallest one. It ranks by coverage, the lowest first, or by
// weight * (1 - coverage), the highest first. Coverage is -inf if nothing is selected. The key
// grows with the coverage.
CLASP_HOST_DEVICE inline uint64_t completion_key(float weight, float covered, int64_t index) {
  if (weight < 0.0F) return smallest_first(covered, index);
  if (weight == 0.0F) return ranked(kRankOfWeightless, index);
  // Rounding can make a cosine less than -1. Without the bound, the key of a token that nothing has
  // covered yet could be larger than a later one.
  const float gain = weight * (1.0F - (covered > -1.0F ? covered : -1.0F));
  return ranked(~ordered_bits(gain), index);
}

}  // namespace clasp
