// The tiles of a symmetric matrix that are computed: those on and above the diagonal.
#pragma once

#include <cstdint>

#include "shared/host_device.h"

namespace clasp {

struct TilePair {
  int32_t row;
  int32_t column;  // at least `row`
};

CLASP_HOST_DEVICE inline int64_t num_tile_pairs(int64_t num_blocks) {
  return num_blocks * (num_blocks + 1) / 2;
}

// Pair `index` of 0 .. num_tile_pairs - 1, column by column: (0, 0), (0, 1), (1, 1), (0, 2) ...
CLASP_HOST_DEVICE inline TilePair tile_pair(int64_t index) {
  // Bisects, because a square root would need a correction where it rounds.
  int64_t high = 1;
  while (num_tile_pairs(high) <= index) high *= 2;
  int64_t low = high / 2;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (num_tile_pairs(middle) <= index ? low : high) = middle;
  }
  return {static_cast<int32_t>(index - num_tile_pairs(low)), static_cast<int32_t>(low)};
}

}  // namespace clasp
