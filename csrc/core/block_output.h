// The kept tokens in image order, from one bit a token; by a block of GPU threads (see
// block_ranking.h for what Block offers).
#pragma once

#include <bit>
#include <cstdint>

#include "core/host_device.h"

namespace clasp {

struct SelectionRow {
  int64_t* indices;  // [width]
  bool* is_pivot;    // [width]
  int64_t* count;
  int64_t width;
};

CLASP_HOST_DEVICE inline int64_t num_words(int64_t num_tokens) {
  return (num_tokens + 31) / 32;
}

CLASP_HOST_DEVICE inline int bit_count(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return std::popcount(word);
#endif
}

// `kept` and `pivots` hold num_words(N) words, `totals` has room for kThreads. At most `width` bits
// of `kept` may be set. The bits must be visible to the whole block.
template <class Block>
CLASP_DEVICE void write_selection(Block& block, const uint32_t* kept, const uint32_t* pivots,
                                  int64_t words, int32_t* totals, const SelectionRow& row) {
  const int64_t share = (words + Block::kThreads - 1) / Block::kThreads;
  block.each([&](int thread) {
    int32_t total = 0;
    for (int64_t w = thread * share; w < (thread + 1) * share && w < words; ++w) {
      total += bit_count(kept[w]);
    }
    totals[thread] = total;
  });
  block.sync();
  block.each([&](int thread) {
    int64_t place = 0;
    int64_t count = 0;
    for (int i = 0; i < Block::kThreads; ++i) {
      place += i < thread ? totals[i] : 0;
      count += totals[i];
    }
    for (int64_t w = thread * share; w < (thread + 1) * share && w < words; ++w) {
      for (int bit = 0; bit < 32; ++bit) {
        if ((kept[w] >> bit & 1U) == 0) continue;
        row.indices[place] = w * 32 + bit;
        row.is_pivot[place] = (pivots[w] >> bit & 1U) != 0;
        ++place;
      }
    }
    for (int64_t i = count + thread; i < row.width; i += Block::kThreads) {
      row.indices[i] = -1;
      row.is_pivot[i] = false;
    }
    if (thread == 0) *row.count = count;
  });
}

}  // namespace clasp
