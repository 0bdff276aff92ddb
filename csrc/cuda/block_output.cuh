// Writes the kept tokens in image order, from one bit per token, with one thread block. Block is as
// in block_ranking.cuh, with an atomic set_bit(words, n).
#pragma once

#include <bit>
#include <cstdint>

#include "shared/host_device.h"

namespace clasp {

struct SelectionRow {
  int64_t* indices;  // [width]
  bool* is_pivot;    // [width]
  int64_t* count;
  int64_t width;
};

CLASP_HOST_DEVICE inline int32_t num_words(int32_t num_tokens) {
  return (num_tokens + 31) / 32;
}

// One bit per token, `words` words each.
struct KeptTokens {
  uint32_t* kept;
  uint32_t* pivots;
  int32_t words;
};

CLASP_HOST_DEVICE inline int bit_count(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __popc(word);
#else
  return std::popcount(word);
#endif
}

// Sets the bits of the pivots; negative indices are skipped. Clear the bits and synchronize the
// block before the call; synchronize it again before reading the bits.
template <class Block>
CLASP_DEVICE void mark_pivots(Block& block, const int32_t* pivots, int64_t num_pivots,
                              const KeptTokens& tokens) {
  block.each([&](int thread) {
    for (int64_t i = thread; i < num_pivots; i += Block::kThreads) {
      if (pivots[i] < 0) continue;
      block.set_bit(tokens.kept, pivots[i]);
      block.set_bit(tokens.pivots, pivots[i]);
    }
  });
}

// Sets the `kept` bits of the tokens n < num_tokens with keeps(n). Synchronize as for mark_pivots.
template <class Block, class Keeps>
CLASP_DEVICE void mark_kept(Block& block, int32_t num_tokens, const Keeps& keeps,
                            const KeptTokens& tokens) {
  block.each([&](int thread) {
    for (int32_t n = thread; n < num_tokens; n += Block::kThreads) {
      if (keeps(n)) block.set_bit(tokens.kept, n);
    }
  });
}

// Writes `row` from the bits. `totals` needs room for kThreads. At most `width` bits of `kept` may
// be set. The bits must be visible to the whole block.
template <class Block>
CLASP_DEVICE void write_selection(Block& block, const KeptTokens& tokens, int32_t* totals,
                                  const SelectionRow& row) {
  const int32_t share = (tokens.words + Block::kThreads - 1) / Block::kThreads;
  // Threads from `busy` on have no words.
  const int32_t busy = tokens.words < Block::kThreads ? tokens.words : Block::kThreads;
  const auto end = [&](int thread) {
    const int32_t last = (thread + 1) * share;
    return last < tokens.words ? last : tokens.words;
  };
  block.each([&](int thread) {
    int32_t total = 0;
    for (int32_t w = thread * share; w < end(thread); ++w) total += bit_count(tokens.kept[w]);
    totals[thread] = total;
  });
  block.sync();
  block.each([&](int thread) {
    int32_t place = 0;
    int32_t count = 0;
    for (int i = 0; i < busy; ++i) {
      place += i < thread ? totals[i] : 0;
      count += totals[i];
    }
    for (int32_t w = thread * share; w < end(thread); ++w) {
      for (int bit = 0; bit < 32; ++bit) {
        if ((tokens.kept[w] >> bit & 1U) == 0) continue;
        row.indices[place] = w * 32 + bit;
        row.is_pivot[place] = (tokens.pivots[w] >> bit & 1U) != 0;
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
