// Finds the pivots of an image by counting: the place of a token in the ranking is the number of
// tokens with a better key. Each thread block ranks some of the tokens. Blocks share nothing, so
// ranking can run next to whatever else the launch computes.
//
// Block is the interface of a thread block, as in cuda/block.cuh: `each(body)` runs body(thread)
// for all threads, and `sync()` is their barrier.
#pragma once

#include <cstdint>

#include "shared/host_device.h"
#include "shared/order.h"

namespace clasp {

// The pivots of one image, `width` entries; -1 in the entries after the last pivot.
struct PivotRow {
  int32_t* pivots;
  int64_t num_pivots;
  int64_t width;
};

// Writes those of the tokens first .. first + kThreads - 1 that are pivots to their places in
// `row`, best first. The block with token 0 also writes -1 to the remaining entries. `rank(n)` is
// the descending_rank of the salience of token n, or kRankOfInvalid if the token may not be chosen.
// `keys` needs room for kThreads.
template <class Block, class Rank>
CLASP_DEVICE void rank_block(Block& block, int32_t first, int32_t num_tokens, const Rank& rank,
                             uint64_t* keys, const PivotRow& row) {
  typename Block::template PerThread<uint64_t> own;
  typename Block::template PerThread<int32_t> place;
  typename Block::template PerThread<int32_t> num_valid;
  block.each([&](int thread) {
    const int32_t n = first + thread;
    own.at(thread) = n < num_tokens ? ranked(rank(n), n) : kRetired;
    place.at(thread) = 0;
    num_valid.at(thread) = 0;
  });
  for (int32_t start = 0; start < num_tokens; start += Block::kThreads) {
    block.each([&](int thread) {
      const int32_t n = start + thread;
      keys[thread] = n < num_tokens ? ranked(rank(n), n) : kRetired;
    });
    block.sync();
    block.each([&](int thread) {
      for (int i = 0; i < Block::kThreads; ++i) {
        place.at(thread) += keys[i] < own.at(thread) ? 1 : 0;
        num_valid.at(thread) += keys[i] >> 32 != kRankOfInvalid ? 1 : 0;
      }
    });
    block.sync();
  }
  block.each([&](int thread) {
    const int32_t n = first + thread;
    const bool valid = own.at(thread) >> 32 != kRankOfInvalid;
    if (n < num_tokens && valid && place.at(thread) < row.num_pivots) {
      row.pivots[place.at(thread)] = n;
    }
    if (first != 0) return;
    const int64_t found =
        num_valid.at(thread) < row.num_pivots ? num_valid.at(thread) : row.num_pivots;
    for (int64_t i = found + thread; i < row.width; i += Block::kThreads) row.pivots[i] = -1;
  });
}

}  // namespace clasp
