// One step of greedy completion without a matrix of similarities: thread blocks update the coverage
// of their tokens and find the next pick.
#pragma once

#include <cstdint>

#include "shared/host_device.h"
#include "shared/order.h"
#include "shared/weights.h"

namespace clasp {

// The state of the tokens of an image between steps; [N] each.
struct Coverage {
  float* covered;
  uint8_t* free;  // whether a token can still be picked
};

// Updates the tokens of [first, last) with the similarities to the tokens `source(i)`, i <
// num_sources, where negative ones are skipped. Returns the best key of the tokens of this warp to
// its leader. `similarity(n, other)` is computed by a whole warp. `block.each_warp(first, last,
// body)` divides the tokens between the warps and runs body(n, is_leader). `weight(n)` is a usable
// weight or kUnweighted.
template <class Block, class Source, class Similarity, class Weight>
CLASP_DEVICE uint64_t cover_tokens(Block& block, int32_t first, int32_t last, int64_t num_sources,
                                   const Source& source, const Similarity& similarity,
                                   const Weight& weight, const Coverage& coverage) {
  uint64_t best = kRetired;
  block.each_warp(first, last, [&](int32_t n, bool is_leader) {
    // Only the leader reads and writes the state: other lanes could read it while the leader
    // writes.
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
    const uint64_t key = completion_key(weight(n), covered, n);
    if (is_free && key < best) best = key;
  });
  return best;
}

}  // namespace clasp
