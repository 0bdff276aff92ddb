// Two-stage selection of one image's tokens: pivots by salience, then completion by coverage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/completion.h"
#include "core/matrix.h"
#include "core/order.h"

namespace clasp {

class Selection {
 public:
  explicit Selection(const Kernels& kernels) : completion_(kernels) {}

  // Writes the kept tokens to `indices` in ascending order, with whether each is a pivot, and
  // returns how many there are: `budget`, or all valid ones if they are fewer. `salience(n)` is a
  // float, `valid(n)` a bool; `parallel` as for Completion::run.
  template <class Salience, class Valid, class Parallel>
  int64_t run(const Matrix& features, const Salience& salience, int64_t budget, int64_t num_pivots,
              const Valid& valid, const Parallel& parallel, int64_t* indices, bool* is_pivot) {
    keys_.clear();
    for (int64_t n = 0; n < features.num_rows; ++n) {
      if (valid(n)) keys_.push_back(largest_first(salience(n), n));
    }
    const auto num_valid = static_cast<int64_t>(keys_.size());
    const int64_t num_kept = std::min(budget, num_valid);
    num_pivots = std::min(std::max<int64_t>(num_pivots, 1), num_kept);
    std::nth_element(keys_.begin(), keys_.begin() + num_pivots, keys_.end());

    kept_.resize(num_kept);
    for (int64_t i = 0; i < num_pivots; ++i) kept_[i] = key_index(keys_[i]);
    if (num_kept == num_valid) {
      // Everything stays; how well anything is covered no longer matters.
      for (int64_t i = num_pivots; i < num_kept; ++i) kept_[i] = key_index(keys_[i]);
    } else if (num_pivots < num_kept) {
      completion_.run(features, kept_.data(), num_pivots, num_kept - num_pivots, valid, parallel,
                      kept_.data() + num_pivots);
    }

    for (int64_t i = 0; i < num_kept; ++i) kept_[i] = 2 * kept_[i] + (i < num_pivots ? 1 : 0);
    std::sort(kept_.begin(), kept_.end());
    for (int64_t i = 0; i < num_kept; ++i) {
      indices[i] = kept_[i] / 2;
      is_pivot[i] = kept_[i] % 2 != 0;
    }
    return num_kept;
  }

 private:
  Completion completion_;
  std::vector<uint64_t> keys_;
  std::vector<int64_t> kept_;  // indices; at the end 2 * index + is_pivot
};

}  // namespace clasp
