// Two-stage selection of one image's tokens: pivots by salience, then completion by coverage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "algorithms/completion.h"
#include "algorithms/matrix.h"
#include "algorithms/pivots.h"

namespace clasp {

class Selection {
 public:
  explicit Selection(const Kernels& kernels) : pivots_(kernels), completion_(kernels) {}

  // Writes the kept tokens to `indices` in ascending order and returns their number: `budget`, or
  // all valid tokens if they are fewer. `is_pivot` tells which of them are pivots. `salience` has
  // one float for each row of `features`; `valid(n)` returns a bool; `weights` and `parallel` are
  // those of Completion::run.
  template <class Valid, class Parallel>
  int64_t run(const Matrix& features, const float* salience, int64_t budget, int64_t num_pivots,
              const float* weights, const Valid& valid, const Parallel& parallel, int64_t* indices,
              bool* is_pivot) {
    int64_t num_valid = 0;
    for (int64_t n = 0; n < features.num_rows; ++n) num_valid += valid(n) ? 1 : 0;
    const int64_t num_kept = std::min(budget, num_valid);
    num_pivots = std::min(std::max<int64_t>(num_pivots, 1), num_kept);
    kept_.resize(num_kept);
    if (num_kept == num_valid) {
      // All valid tokens are kept, so coverage does not matter. Only the ranking by salience does.
      pivots_.run(salience, features.num_rows, num_kept, valid, kept_.data());
    } else {
      pivots_.run_unordered(salience, features.num_rows, num_pivots, valid, kept_.data());
      completion_.run(features, kept_.data(), num_pivots, num_kept - num_pivots, weights, valid,
                      parallel, kept_.data() + num_pivots);
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
  Pivots pivots_;
  Completion completion_;
  std::vector<int64_t> kept_;  // indices; before sorting, 2 * index + is_pivot
};

}  // namespace clasp
