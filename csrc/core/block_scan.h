// Greedy completion of one image by a block of GPU threads, from the matrix of all similarities.
//
// Thread t holds tokens t, t + kThreads, ... kItems at most, in registers: how well each is
// covered, and a bit for whether it can still be picked. A step is a minimum over the block, which
// also is its barrier, and one row of the matrix. Block is as in block_ranking.h, with
// `minimum(key)` of key(thread) over all threads.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/order.h"
#include "core/scalar.h"

namespace clasp {

// The similarities of one image, [N, N] symmetric.
struct SimilarityRows {
  const float* data;
  int64_t row_stride;
  int64_t num_tokens;
};

// Calls picked(step, n), on every thread, for up to `num_picks` tokens in order of picking and
// returns how many there were. `selected(i)` is the i-th of `num_selected` tokens to start from,
// negative for none; `available(n)` tells which of the others may be picked.
template <class Block, class Selected, class Available, class Picked>
CLASP_DEVICE int64_t complete(Block& block, const SimilarityRows& rows, const Selected& selected,
                              int64_t num_selected, int64_t num_picks, const Available& available,
                              const Picked& picked) {
  static_assert(Block::kItems <= 32, "one bit an item");
  typename Block::template Items<float> covered;
  typename Block::template PerThread<uint32_t> free;

  const auto cover = [&](int thread, int64_t other) {
    const float* row = rows.data + other * rows.row_stride;
    CLASP_UNROLL_ITEMS
    for (int i = 0; i < Block::kItems; ++i) {
      const int64_t n = int64_t{i} * Block::kThreads + thread;
      if (n >= rows.num_tokens) continue;
      const float similarity = row[n];
      if (similarity > covered.at(thread, i)) covered.at(thread, i) = similarity;
    }
    if (other % Block::kThreads == thread) {
      free.at(thread) &= ~(1U << static_cast<uint32_t>(other / Block::kThreads));
    }
  };

  block.each([&](int thread) {
    free.at(thread) = 0;
    CLASP_UNROLL_ITEMS
    for (int i = 0; i < Block::kItems; ++i) {
      const int64_t n = int64_t{i} * Block::kThreads + thread;
      covered.at(thread, i) = -infinity();
      if (n < rows.num_tokens && available(n)) free.at(thread) |= 1U << i;
    }
    for (int64_t i = 0; i < num_selected; ++i) {
      const int64_t other = selected(i);
      if (other >= 0 && other < rows.num_tokens) cover(thread, other);
    }
  });

  for (int64_t step = 0; step < num_picks; ++step) {
    const uint64_t best = block.minimum([&](int thread) {
      uint64_t key = kRetired;
      CLASP_UNROLL_ITEMS
      for (int i = 0; i < Block::kItems; ++i) {
        const int64_t n = int64_t{i} * Block::kThreads + thread;
        const uint64_t other = smallest_first(covered.at(thread, i), n);
        if ((free.at(thread) >> i & 1U) != 0 && other < key) key = other;
      }
      return key;
    });
    if (best == kRetired) return step;
    block.each([&](int thread) {
      picked(thread, step, key_index(best));
      cover(thread, key_index(best));
    });
  }
  return num_picks;
}

}  // namespace clasp
