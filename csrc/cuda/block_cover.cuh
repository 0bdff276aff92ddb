// A step of greedy completion without a matrix of similarities: blocks of GPU threads bring the
// coverage of their tokens up to date and say which of them is covered least.
#pragma once

#include <cstdint>

#include "shared/host_device.h"
#include "shared/order.h"

namespace clasp {

// What is known of the tokens of an image between steps; [N] each.
struct Coverage {
  float* covered;
  uint8_t* free;  // whether a token can still be picked
};

// The best key among tokens first .. last - 1 of this warp, on its leader, once they have seen
// `source(i)` for i below `num_sources`, tokens or negative. `similarity(n, other)` is computed by
// a whole warp, and `block.each_warp(first, last, body)` runs body(n, is_leader) for a share of the
// tokens on each.
template <class Block, class Source, class Similarity>
CLASP_DEVICE uint64_t cover_tokens(Block& block, int32_t first, int32_t last, int64_t num_sources,
                                   const Source& source, const Similarity& similarity,
                                   const Coverage& coverage) {
  uint64_t best = kRetired;
  block.each_warp(first, last, [&](int32_t n, bool is_leader) {
    // Only the leader's is true: it writes what others would read in the meantime.
    float covered = is_leader ? coverage.covered[n] : 0.0F;
    bool is_free = is_leader && coverage.free[n] != 0;
    for (int64_t i = 0; i < num_sources; ++i) {
      const int32_t other = source(i);
      if (other < 0) continue;
      if (other == n) is_free = false;
      const float seen = similarity(n, other);
      if (seen > covered) covered = seen;
    }
    if (!is_leader) return;
    coverage.covered[n] = covered;
    coverage.free[n] = is_free ? 1 : 0;
    const uint64_t key = smallest_first(covered, n);
    if (is_free && key < best) best = key;
  });
  return best;
}

}  // namespace clasp
