// Ranking keys: a value and an index packed into one integer, so that "better value, ties to the
// lower index" is a single comparison with a defined order for NaN.
#pragma once

#include <cstdint>
#include <limits>

#include "shared/host_device.h"
#include "shared/scalar.h"

namespace clasp {

// Smaller keys are better. kRetired is worse than the key of any candidate.
inline constexpr uint64_t kRetired = std::numeric_limits<uint64_t>::max();

// Maps a float to an unsigned integer of the same order; x must not be NaN. -0 maps to the same
// integer as +0, because they are equal and have to tie. Adding zero would also turn -0 into +0,
// but it loses subnormals in a thread that flushes them.
CLASP_HOST_DEVICE inline uint32_t ordered_bits(float x) {
  const uint32_t bits = float_to_bits(x);
  if (bits == 0x80000000U) return bits;
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

// The smallest rank first, ties to the lower index.
CLASP_HOST_DEVICE inline uint64_t ranked(uint32_t rank, int64_t index) {
  return uint64_t{rank} << 32 | static_cast<uint32_t>(index);
}

// The smallest value first. Used by greedy completion, over how well a token is covered.
CLASP_HOST_DEVICE inline uint64_t smallest_first(float value, int64_t index) {
  return ranked(ordered_bits(value), index);
}

// Smaller ranks are better: the largest value first, NaN last. The rank of -inf is 0xFF800000, so
// kRankOfNan and kRankOfInvalid cannot clash with the rank of a number.
inline constexpr uint32_t kRankOfNan = 0xFFFFFFFEU;
inline constexpr uint32_t kRankOfInvalid = 0xFFFFFFFFU;

CLASP_HOST_DEVICE inline uint32_t descending_rank(float value) {
  const bool is_nan = (float_to_bits(value) & 0x7FFFFFFFU) > 0x7F800000U;
  return is_nan ? kRankOfNan : ~ordered_bits(value);
}

CLASP_HOST_DEVICE inline int64_t key_index(uint64_t key) {
  return static_cast<int64_t>(key & 0xFFFFFFFFU);
}

}  // namespace clasp
