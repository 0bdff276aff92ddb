// The number of tokens that an image keeps, and how many of them are pivots.
#pragma once

#include <cstdint>

#include "shared/host_device.h"

namespace clasp {

// Unchecked counts, from a [B] tensor or the same for all images; at() clamps them.
struct Counts {
  const int64_t* data;  // null: `most` for every image
  int64_t stride;
  int64_t most;

  CLASP_HOST_DEVICE int64_t at(int64_t image, int64_t least) const {
    const int64_t count = data ? data[image * stride] : most;
    return count < least ? least : count > most ? most : count;
  }
};

struct ImageBudget {
  int64_t tokens;
  int64_t pivots;  // 1 .. tokens; 0 if tokens is 0

  CLASP_HOST_DEVICE static ImageBudget of(const Counts& budget, const Counts& pivot_counts,
                                          int64_t image) {
    const int64_t tokens = budget.at(image, 0);
    const int64_t pivots = pivot_counts.at(image, 1);
    return {tokens, pivots < tokens ? pivots : tokens};
  }

  // Whether all valid tokens are kept, so that the order of picking does not matter.
  CLASP_HOST_DEVICE bool keeps_all(int32_t num_tokens) const { return tokens >= num_tokens; }

  // The number of tokens that greedy completion picks.
  CLASP_HOST_DEVICE int32_t picks(int32_t num_tokens) const {
    return keeps_all(num_tokens) ? 0 : static_cast<int32_t>(tokens - pivots);
  }
};

}  // namespace clasp
