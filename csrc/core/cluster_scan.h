// Greedy completion by a cluster of GPU blocks, each of which holds some of an image's tokens and
// can compare them with a few others at the price of one.
//
// Coverage only grows, so a token's key can only become worse. Each block offers its best token,
// and a bound for its rest. The best of these offers are compared with all tokens at once, and then
// picked in turn for as long as none of the others can be better: one pick for certain, two to four
// as a rule. All blocks come to the same picks from the same offers, so that they meet once a pass.
//
// Warp: 32 threads as a block of its own (see block_ranking.h), of which every block has one. A
// block has no more tokens than that has items, and thread t of it holds those in slots t, t + 32
// and so on.
#pragma once

#include <cstdint>

#include "core/cosine.h"
#include "core/host_device.h"
#include "core/order.h"
#include "core/scalar.h"

namespace clasp {

// The tokens first .. first + count - 1 of an image are a block's.
struct TokenShare {
  int32_t first;
  int32_t count;

  CLASP_HOST_DEVICE static TokenShare of(int32_t num_tokens, int32_t num_blocks, int32_t block) {
    const int32_t most = (num_tokens + num_blocks - 1) / num_blocks;
    const int32_t first = block * most < num_tokens ? block * most : num_tokens;
    return {first, num_tokens - first < most ? num_tokens - first : most};
  }
};

struct Offer {
  uint64_t best;  // kRetired if there is none
  uint64_t rest;  // no other token of the block has a better key
};

// Tokens to compare all others with.
template <int kColumns>
struct Candidates {
  int32_t tokens[kColumns];  // negative: none
  uint64_t keys[kColumns];   // kRetired where there is none, or where the token need not be picked
  uint64_t rest;             // no other token of the image has a better key
};

// The best kColumns of the offers, or fewer. There may be as many offers as the warp has threads.
template <int kColumns, class Warp>
CLASP_DEVICE void choose_candidates(Warp& warp, const Offer* offers, int32_t num_offers,
                                    Candidates<kColumns>& candidates) {
  static_assert(kColumns <= Warp::kThreads);
  warp.each([&](int thread) {
    if (thread >= kColumns) return;
    candidates.tokens[thread] = -1;
    candidates.keys[thread] = kRetired;
  });
  warp.sync();
  typename Warp::template PerThread<uint64_t> bound;
  warp.each([&](int thread) {
    bound.at(thread) = kRetired;
    if (thread >= num_offers || offers[thread].best == kRetired) return;
    const Offer own = offers[thread];
    int32_t place = 0;
    for (int32_t i = 0; i < num_offers; ++i) place += offers[i].best < own.best ? 1 : 0;
    bound.at(thread) = place < kColumns ? own.rest : own.best;
    if (place >= kColumns) return;
    candidates.tokens[place] = static_cast<int32_t>(key_index(own.best));
    candidates.keys[place] = own.best;
  });
  const uint64_t rest = warp.minimum([&](int thread) { return bound.at(thread); });
  warp.each([&](int thread) {
    if (thread == 0) candidates.rest = rest;
  });
}

// A block's tokens, in the registers of its warp.
template <class Warp>
class ShareCoverage {
 public:
  static_assert(Warp::kItems <= 32, "one bit an item");

  template <class Available>
  CLASP_DEVICE ShareCoverage(Warp& warp, const TokenShare& share, const Available& available)
      : warp_(warp), share_(share) {
    warp_.each([&](int thread) {
      free_.at(thread) = 0;
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Warp::kItems; ++i) {
        const int32_t slot = slot_of(thread, i);
        covered_.at(thread, i) = -infinity();
        if (slot < share_.count && available(share_.first + slot)) free_.at(thread) |= 1U << i;
      }
    });
  }

  // By one token; `similarity(slot)` is that of the token in a slot.
  template <class Similarity>
  CLASP_DEVICE void cover(int32_t token, const Similarity& similarity) {
    warp_.each([&](int thread) {
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Warp::kItems; ++i) {
        const int32_t slot = slot_of(thread, i);
        if (slot >= share_.count) continue;
        const float seen = similarity(slot);
        if (seen > covered_.at(thread, i)) covered_.at(thread, i) = seen;
        if (share_.first + slot == token) free_.at(thread) &= ~(1U << i);
      }
    });
  }

  CLASP_DEVICE Offer offer() {
    const uint64_t best = best_above(0);
    if (best == kRetired) return {kRetired, kRetired};
    return {best, best_above(best + 1)};
  }

 private:
  CLASP_DEVICE static int32_t slot_of(int thread, int item) {
    return item * Warp::kThreads + thread;
  }

  CLASP_DEVICE uint64_t best_above(uint64_t least) {
    return warp_.minimum([&](int thread) {
      uint64_t best = kRetired;
      CLASP_DEVICE_UNROLL
      for (int i = 0; i < Warp::kItems; ++i) {
        const uint64_t key =
            smallest_first(covered_.at(thread, i), share_.first + slot_of(thread, i));
        if ((free_.at(thread) >> i & 1U) != 0 && key >= least && key < best) best = key;
      }
      return best;
    });
  }

  Warp& warp_;
  TokenShare share_;
  typename Warp::template Items<float> covered_;
  typename Warp::template PerThread<uint32_t> free_;
};

// What a pass has found: the similarities of a block's tokens, and after them of the candidates
// themselves, to each candidate.
template <int kColumns>
struct PassSimilarities {
  const float* data;  // [num_slots + kColumns, kColumns]
  int32_t num_slots;

  CLASP_DEVICE float of_slot(int32_t slot, int32_t column) const {
    return data[slot * kColumns + column];
  }
  CLASP_DEVICE float of_candidate(int32_t other, int32_t column) const {
    return of_slot(num_slots + other, column);
  }
};

// Picks candidates for as long as they are the best of the image, `most` at most, and calls
// picked(i, n) on every thread for each. Returns how many there were: at least one, if there are
// candidates and `most` is not 0.
template <int kColumns, class Warp, class Picked>
CLASP_DEVICE int32_t pick_candidates(Warp& warp, const Candidates<kColumns>& candidates,
                                     const PassSimilarities<kColumns>& similarities, int32_t most,
                                     ShareCoverage<Warp>& coverage, const Picked& picked) {
  typename Warp::template PerThread<uint64_t> key;
  warp.each(
      [&](int thread) { key.at(thread) = thread < kColumns ? candidates.keys[thread] : kRetired; });
  for (int32_t taken = 0; taken < most; ++taken) {
    const uint64_t best = warp.minimum([&](int thread) { return key.at(thread); });
    if (best == kRetired || best > candidates.rest) return taken;
    const int column = warp.find([&](int thread) { return key.at(thread) == best; });
    const auto token = static_cast<int32_t>(key_index(best));
    warp.each([&](int thread) {
      picked(thread, taken, token);
      uint64_t& own = key.at(thread);
      if (thread >= kColumns || own == kRetired) return;
      const uint64_t seen =
          smallest_first(similarities.of_candidate(thread, column), key_index(own));
      if (seen > own) own = seen;
      if (thread == column) own = kRetired;
    });
    coverage.cover(token, [&](int32_t slot) { return similarities.of_slot(slot, column); });
  }
  return most;
}

// Adds up what kPartials warps know of the dot products, [kPartials, kRows, kColumns], and leaves
// similarities in the first of them.
template <int kPartials, int kRows, int kColumns, class Block, class RowNorm, class ColumnNorm>
CLASP_DEVICE void sum_similarities(Block& block, float* dots, const RowNorm& row_norm,
                                   const ColumnNorm& column_norm) {
  block.each([&](int thread) {
    for (int e = thread; e < kRows * kColumns; e += Block::kThreads) {
      float sum = 0.0F;
      CLASP_DEVICE_UNROLL
      for (int part = 0; part < kPartials; ++part) sum += dots[part * kRows * kColumns + e];
      dots[e] = cosine(sum, row_norm(e / kColumns), column_norm(e % kColumns));
    }
  });
}

}  // namespace clasp
