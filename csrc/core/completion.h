// Greedy farthest-first completion under cosine similarity, evaluated lazily.
//
// covered[n] = max over selected j of cos(n, j) only ever grows, so a value that has not yet seen
// the latest selections is a lower bound. Each step refreshes the token with the smallest bound
// until the smallest bound is exact: that token is the one an eager evaluation would pick, to the
// last tie, for a fraction of the dot products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/kernels.h"
#include "core/matrix.h"
#include "core/order.h"
#include "core/winner_tree.h"

namespace clasp {

// A zero vector is similar to nothing. Any other similarity that is not finite is larger than all
// that are, so that such a token never attracts.
inline float cosine(float dot, float norm_a, float norm_b) {
  if (norm_a == 0.0F || norm_b == 0.0F) return 0.0F;
  const float similarity = dot / (norm_a * norm_b);
  return std::isfinite(similarity) ? similarity : std::numeric_limits<float>::infinity();
}

// Completes one image at a time; the buffers are kept from one to the next.
class Completion {
 public:
  explicit Completion(const Kernels& kernels) : kernels_(kernels) {}

  // Picks up to `num_tokens` tokens and returns how many there were, written to `picks` in order.
  // `selected` are distinct row indices; `available(n)` tells which of the other rows may be
  // picked. `parallel(count, body)` runs body(begin, end) over ranges that cover 0..count.
  template <class Available, class Parallel>
  int64_t run(const Matrix& features, const int64_t* selected, int64_t num_selected,
              int64_t num_tokens, const Available& available, const Parallel& parallel,
              int64_t* picks) {
    reset(features, num_selected + num_tokens);
    for (int64_t i = 0; i < num_selected; ++i) select(selected[i]);
    for (int64_t n = 0; n < features.num_rows; ++n) {
      const bool candidate = !is_selected_[n] && available(n);
      tree_.set_leaf(n, candidate ? smallest_first(bounds_[n], n) : kRetired);
      is_candidate_[n] = candidate;
    }
    tree_.play_all();

    int64_t num_picked = 0;
    bool scanned = false;
    while (num_picked < num_tokens) {
      if (!scanned && !rows_.empty()) {
        scan(parallel);
        scanned = true;
      }
      const int64_t pick = next();
      if (pick < 0) break;
      picks[num_picked++] = pick;
      is_candidate_[pick] = false;
      tree_.update(pick, kRetired);
      // Nothing is compared with the last one.
      if (num_picked < num_tokens) select(pick);
    }
    return num_picked;
  }

 private:
  // Selections every token is compared with in the first pass, which has to read all the rows for
  // their norms in any case; also how many are compared before a bound is looked at again.
  static constexpr int64_t kChunk = 8;

  void reset(const Matrix& features, int64_t max_selected) {
    features_ = &features;
    const int64_t num_rows = features.num_rows;
    bounds_.assign(num_rows, -std::numeric_limits<float>::infinity());
    norms_.resize(num_rows);
    num_seen_.assign(num_rows, 0);
    is_selected_.assign(num_rows, false);
    is_candidate_.resize(num_rows);
    tree_.reset(num_rows);
    rows_.clear();
    row_norms_.clear();
    if (!features.in_place()) {
      const int64_t capacity = std::min(max_selected, num_rows);
      row_storage_.resize(capacity * features.num_columns);
      row_buffer_.resize(features.num_columns);
    }
  }

  void select(int64_t index) {
    const int64_t dim = features_->num_columns;
    float* storage = row_storage_.data();
    if (!features_->in_place()) storage += static_cast<int64_t>(rows_.size()) * dim;
    const float* row = features_->load(index, kernels_, storage);
    rows_.push_back(row);
    row_norms_.push_back(norm(row));
    is_selected_[index] = true;
  }

  float norm(const float* row) const {
    float sum_of_squares;
    kernels_.dots(row, &row, 1, features_->num_columns, &sum_of_squares);
    return std::sqrt(sum_of_squares);
  }

  // The first pass over all candidates: their norms, and their first bounds.
  template <class Parallel>
  void scan(const Parallel& parallel) {
    parallel(features_->num_rows, [this](int64_t begin, int64_t end) {
      std::vector<float> buffer(features_->in_place() ? 0 : features_->num_columns);
      for (int64_t n = begin; n < end; ++n) {
        if (!is_candidate_[n]) continue;
        const float* row = features_->load(n, kernels_, buffer.data());
        norms_[n] = norm(row);
        compare_with_chunk(n, row);
        tree_.set_leaf(n, smallest_first(bounds_[n], n));
      }
    });
    tree_.play_all();
  }

  // The candidate that is covered least, ties to the lower index; -1 when none is left.
  int64_t next() {
    const auto num_selected = static_cast<int64_t>(rows_.size());
    while (tree_.best() != kRetired) {
      const int64_t n = key_index(tree_.best());
      if (num_seen_[n] == num_selected) return n;
      const uint64_t runner_up = tree_.best_other_than(n);
      const float* row = features_->load(n, kernels_, row_buffer_.data());
      uint64_t key;
      do {
        compare_with_chunk(n, row);
        key = smallest_first(bounds_[n], n);
      } while (num_seen_[n] < num_selected && key < runner_up);
      tree_.update(n, key);
    }
    return -1;
  }

  void compare_with_chunk(int64_t n, const float* row) {
    const int64_t first = num_seen_[n];
    const int64_t count = std::min(static_cast<int64_t>(rows_.size()) - first, kChunk);
    float dots[kChunk];
    kernels_.dots(row, rows_.data() + first, count, features_->num_columns, dots);
    float bound = bounds_[n];
    for (int64_t i = 0; i < count; ++i) {
      bound = std::max(bound, cosine(dots[i], norms_[n], row_norms_[first + i]));
    }
    bounds_[n] = bound;
    num_seen_[n] = static_cast<int32_t>(first + count);
  }

  const Kernels& kernels_;
  const Matrix* features_ = nullptr;
  std::vector<float> bounds_;       // [N] the largest similarity to rows_[0 .. num_seen_[n])
  std::vector<float> norms_;        // [N]
  std::vector<int32_t> num_seen_;   // [N]
  std::vector<char> is_selected_;   // [N]
  std::vector<char> is_candidate_;  // [N]
  WinnerTree tree_;                 // over bounds_; only candidates take part
  std::vector<const float*> rows_;  // the selected tokens, in order of selection
  std::vector<float> row_norms_;
  std::vector<float> row_storage_;  // selected rows that could not be used in place
  std::vector<float> row_buffer_;
};

}  // namespace clasp
