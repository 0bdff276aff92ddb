// How candidates are ranked: a value and an index packed into one integer, so that "better value,
// ties to the lower index" is a single comparison that no NaN can upset.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace clasp {

// Smaller keys are better. Worse than every key of a real candidate:
inline constexpr uint64_t kRetired = std::numeric_limits<uint64_t>::max();

// An unsigned integer that orders like the float; x must not be NaN. Adding zero turns -0 into +0:
// the two are equal as numbers and have to tie.
inline uint32_t ordered_bits(float x) {
  x += 0.0F;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

// Smallest value first: for greedy completion, over how well a token is already covered.
inline uint64_t smallest_first(float value, int64_t index) {
  return uint64_t{ordered_bits(value)} << 32 | static_cast<uint32_t>(index);
}

// Largest value first, NaN after everything else: for pivots, over salience. -inf has the rank
// 0xFF800000, so NaN's rank stays below kRetired whatever the index.
inline uint64_t largest_first(float value, int64_t index) {
  const uint32_t rank = std::isnan(value) ? 0xFFFFFFFEU : ~ordered_bits(value);
  return uint64_t{rank} << 32 | static_cast<uint32_t>(index);
}

inline int64_t key_index(uint64_t key) {
  return static_cast<int64_t>(key & 0xFFFFFFFFU);
}

}  // namespace clasp
