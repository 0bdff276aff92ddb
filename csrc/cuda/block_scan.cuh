// Greedy completion of one image by one thread block, from the matrix of all similarities.
//
// Thread t holds tokens t, t + kThreads, ..., at most kItems of them, in registers: the coverage of
// each token, its weight if kWeighted, and a bit that is set while it can be picked. A step is one
// minimum over the block, which is also its barrier, and one row of the matrix. Block is as in
// block_ranking.cuh, with `minimum(key)` over key(thread) of all threads.
#pragma once

#include <cstdint>

#include "cuda/block_weights.cuh"
#include "shared/host_device.h"
#include "shared/order.h"
#include "shared/scalar.h"
#include "shared/weights.h"

namespace clasp {

// The similarities of one image, [N, N] symmetric.
struct SimilarityRows {
  const float* data;
  int64_t row_stride;
  int32_t num_tokens;
};

// Calls picked(thread, step, n) on every thread for up to `num_picks` tokens, in the order of
// picking, and returns their number. `selected(i)` is the i-th of `num_selected` initial tokens, or
// negative for none. `available(n)` tells whether another token may be picked. If kWeighted,
// `weight(n)` is the usable weight of a token; otherwise it is not called. Reads no similarity and
// no weight if num_picks is 0.
template <bool kWeighted, class Block, class Selected, class Available, class Weight, class Picked>
CLASP_DEVICE int32_t complete(Block& block, const SimilarityRows& rows, const Selected& selected,
                              int64_t num_selected, int32_t num_picks, const Available& available,
                              const Weight& weight, const Picked& picked) {
  static_assert(Block::kItems <= 32, "one bit an item");
  if (num_picks == 0) return 0;
  typename Block::template Items<float> covered;
  typename Block::template PerThread<uint32_t> free;
  // Not used, so without registers, if not kWeighted.
  typename Block::template Items<float> weights;

  // Updates the coverage with kRows tokens; negative indices are skipped.
  const auto cover = [&]<int kRows>(int thread, const int32_t (&others)[kRows]) {
    float seen[kRows][Block::kItems];
    CLASP_DEVICE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const bool is_token = others[r] >= 0 && others[r] < rows.num_tokens;
      const float* row = rows.data + (is_token ? others[r] * rows.row_stride : 0);
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Block::kItems; ++i) {
        const int32_t n = i * Block::kThreads + thread;
        seen[r][i] = is_token && n < rows.num_tokens ? row[n] : -infinity();
      }
      if (is_token && others[r] % Block::kThreads == thread) {
        free.at(thread) &= ~(1U << static_cast<uint32_t>(others[r] / Block::kThreads));
      }
    }
    CLASP_DEVICE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Block::kItems; ++i) {
        if (seen[r][i] > covered.at(thread, i)) covered.at(thread, i) = seen[r][i];
      }
    }
  };

  block.each([&](int thread) {
    free.at(thread) = 0;
    CLASP_DEVICE_UNROLL
    for (int i = 0; i < Block::kItems; ++i) {
      const int32_t n = i * Block::kThreads + thread;
      covered.at(thread, i) = -infinity();
      if (n < rows.num_tokens && available(n)) free.at(thread) |= 1U << i;
    }
  });
  if constexpr (kWeighted) {
    typename Block::template PerThread<WeightRange> ranges;
    block.each([&](int thread) {
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Block::kItems; ++i) {
        const int32_t n = i * Block::kThreads + thread;
        weights.at(thread, i) = n < rows.num_tokens ? weight(n) : 0.0F;
        if ((free.at(thread) >> i & 1U) != 0) ranges.at(thread).add(weights.at(thread, i));
      }
    });
    if (are_equal(block, ranges)) {
      block.each([&](int thread) {
        CLASP_DEVICE_UNROLL
        for (int i = 0; i < Block::kItems; ++i) weights.at(thread, i) = kUnweighted;
      });
    }
  }
  block.each([&](int thread) {
    // The initial tokens are known in advance, so the loads of several rows can overlap.
    constexpr int kAtOnce = 4;
    for (int64_t first = 0; first < num_selected; first += kAtOnce) {
      int32_t others[kAtOnce];
      CLASP_DEVICE_UNROLL
      for (int r = 0; r < kAtOnce; ++r) {
        others[r] = first + r < num_selected ? selected(first + r) : -1;
      }
      cover(thread, others);
    }
  });

  for (int32_t step = 0; step < num_picks; ++step) {
    const uint64_t best = block.minimum([&](int thread) {
      uint64_t key = kRetired;
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Block::kItems; ++i) {
        const int32_t n = i * Block::kThreads + thread;
        const uint64_t other = completion_key(kWeighted ? weights.at(thread, i) : kUnweighted,
                                              covered.at(thread, i), n);
        if ((free.at(thread) >> i & 1U) != 0 && other < key) key = other;
      }
      return key;
    });
    if (best == kRetired) return step;
    const int32_t pick[] = {static_cast<int32_t>(key_index(best))};
    block.each([&](int thread) {
      picked(thread, step, pick[0]);
      cover(thread, pick);
    });
  }
  return num_picks;
}

}  // namespace clasp
