// Exact top-k of an image's salience: by value, NaN last, ties to the lower index.
//
// Ranks are integers in the order of the values. Bisection finds the rank of the last pivot: each
// step counts the ranks up to the midpoint in one branch-free pass. A quickselect looks at fewer
// elements but mispredicts every other branch. Bisection stops once the count is exact, usually
// after about half of the 32 possible steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shared/order.h"
#include "simd/kernels.h"

namespace clasp {

// Processes one image at a time; the buffers are reused between images.
class Pivots {
 public:
  explicit Pivots(const Kernels& kernels) : kernels_(kernels) {}

  // Writes the `num_pivots` best tokens, best first, or all valid tokens if they are fewer. Returns
  // their number. `salience` holds `num_tokens` floats; `valid(n)` returns a bool.
  template <class Valid>
  int64_t run(const float* salience, int64_t num_tokens, int64_t num_pivots, const Valid& valid,
              int64_t* pivots) {
    const int64_t found = find(salience, num_tokens, num_pivots, valid);
    if (found <= kFew) {
      sort_few(found, pivots);
    } else {
      sort_many(found, pivots);
    }
    return found;
  }

  // As run(), but in no particular order.
  template <class Valid>
  int64_t run_unordered(const float* salience, int64_t num_tokens, int64_t num_pivots,
                        const Valid& valid, int64_t* pivots) {
    const int64_t found = find(salience, num_tokens, num_pivots, valid);
    std::copy_n(found_.data(), found, pivots);
    return found;
  }

 private:
  // Up to this count, comparing all pairs is faster than sorting, which mispredicts branches.
  static constexpr int64_t kFew = 256;

  // Writes the positions of the pivots to found_, in ascending order among equal ranks.
  template <class Valid>
  int64_t find(const float* salience, int64_t num_tokens, int64_t num_pivots, const Valid& valid) {
    ranks_.resize(num_tokens);
    const RankRange range = kernels_.rank(salience, num_tokens, ranks_.data());
    const int64_t num_valid = retire_invalid(valid);
    num_pivots = std::min(num_pivots, num_valid);
    if (num_pivots <= 0) return 0;
    found_.resize(num_pivots + 1);

    // Invariant: at least num_pivots ranks are <= high, and num_below < num_pivots are < low.
    uint32_t low = range.best;
    uint32_t high = range.worst;
    int64_t num_below = 0;
    bool exact = num_pivots == num_valid;
    while (low < high && !exact) {
      const uint32_t middle = low + (high - low) / 2;
      const int64_t count = kernels_.count_up_to(ranks_.data(), num_tokens, middle);
      if (count >= num_pivots) {
        high = middle;
        exact = count == num_pivots;
      } else {
        low = middle + 1;
        num_below = count;
      }
    }
    if (exact) return kernels_.find_up_to(ranks_.data(), num_tokens, high, found_.data());
    // More tokens tie at rank `high` than places are left. The lowest indices are kept.
    kernels_.find_up_to(ranks_.data(), num_tokens, high - 1, found_.data());
    for (int64_t n = 0; num_below < num_pivots; ++n) {
      if (ranks_[n] == high) found_[num_below++] = static_cast<uint32_t>(n);
    }
    return num_pivots;
  }

  // Returns the number of valid tokens.
  template <class Valid>
  int64_t retire_invalid(const Valid& valid) {
    int64_t num_valid = 0;
    for (int64_t n = 0; n < static_cast<int64_t>(ranks_.size()); ++n) {
      const bool is_valid = valid(n);
      ranks_[n] = is_valid ? ranks_[n] : kRankOfInvalid;
      num_valid += is_valid ? 1 : 0;
    }
    return num_valid;
  }

  void sort_few(int64_t count, int64_t* pivots) {
    uint32_t ranks[kFew] = {};
    uint32_t num_better[kFew];
    uint32_t num_tied[kFew] = {};
    for (int64_t i = 0; i < count; ++i) ranks[i] = ranks_[found_[i]];
    kernels_.count_better(ranks, count, num_better);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t place = num_better[i];
      pivots[place + num_tied[place]++] = found_[i];
    }
  }

  void sort_many(int64_t count, int64_t* pivots) {
    keys_.resize(count);
    for (int64_t i = 0; i < count; ++i) keys_[i] = ranked(ranks_[found_[i]], found_[i]);
    std::sort(keys_.begin(), keys_.end());
    for (int64_t i = 0; i < count; ++i) pivots[i] = key_index(keys_[i]);
  }

  const Kernels& kernels_;
  std::vector<uint32_t> ranks_;  // [N]
  std::vector<uint32_t> found_;  // [P + 1]
  std::vector<uint64_t> keys_;   // [P]
};

}  // namespace clasp
