// Decides with one thread block whether an image is weighted: whether the weights of its valid
// tokens differ. Block is as in block_ranking.cuh, with `minimum(key)` over key(thread) of all
// threads.
#pragma once

#include <cstdint>

#include "shared/host_device.h"
#include "shared/scalar.h"
#include "shared/weights.h"

namespace clasp {

// The least and the largest of some usable weights, as bits: those of floats that are not negative
// have the order of the floats.
struct WeightRange {
  uint32_t least = 0xFFFFFFFFU;
  uint32_t most = 0;

  CLASP_DEVICE void add(float weight) {
    const uint32_t bits = float_to_bits(weight);
    if (bits < least) least = bits;
    if (bits > most) most = bits;
  }
};

// Whether all weights in the ranges of all threads are equal, or there are none. Also acts as a
// barrier.
template <class Block, class Ranges>
CLASP_DEVICE bool are_equal(Block& block, Ranges& ranges) {
  const uint64_t least =
      block.minimum([&](int thread) { return uint64_t{ranges.at(thread).least}; });
  const uint64_t inverted =
      block.minimum([&](int thread) { return uint64_t{~ranges.at(thread).most}; });
  return static_cast<uint32_t>(least) >= ~static_cast<uint32_t>(inverted);
}

}  // namespace clasp
