// Greedy farthest-first completion under cosine similarity, evaluated lazily.
//
// covered[n] = max over selected j of cos(n, j) only ever grows, so a value that has not yet seen
// the latest selections is a lower bound, and most tokens can be ruled out by one. Two ways to
// raise the bounds, which an eager evaluation to the last tie agrees with:
//
// - best first: refresh the token with the smallest bound until the smallest bound is exact. It is
//   the pick. No evaluation is wasted, but each is a single token's.
// - sweeps: with m picks to go, the last of them is covered at least as much as the m-th smallest
//   bound says, and whatever has a smaller bound must have been refreshed by then. These tokens can
//   be refreshed together, in tiles and in parallel, at no waste.
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
  // `selected` are row indices, `available(n)` tells which of the other rows may be picked.
  // `parallel(count, body)` runs body(begin, end) over ranges that cover 0..count.
  template <class Available, class Parallel>
  int64_t run(const Matrix& features, const int64_t* selected, int64_t num_selected,
              int64_t num_tokens, const Available& available, const Parallel& parallel,
              int64_t* picks) {
    reset(features, num_selected + num_tokens);
    for (int64_t i = 0; i < num_selected; ++i) select(selected[i]);
    for (int64_t n = 0; n < features.num_rows; ++n) {
      if (!is_selected_[n] && available(n)) tree_.set_leaf(n, key(n));
    }
    tree_.play_all();

    int64_t num_picked = 0;
    int64_t next_sweep = 1;
    while (num_picked < num_tokens) {
      if (num_rows() >= next_sweep) {
        if (next_sweep == 1) scan(num_tokens - num_picked, parallel);
        sweep(num_tokens - num_picked, parallel);
        next_sweep = num_rows() + kChunk;
      }
      const int64_t pick = next();
      if (pick < 0) break;
      picks[num_picked++] = pick;
      tree_.update(pick, kRetired);
      // Nothing is compared with the last one.
      if (num_picked < num_tokens) select(pick);
    }
    return num_picked;
  }

 private:
  // Selections that a token is compared with before its bound is looked at again.
  static constexpr int64_t kChunk = 8;

  void reset(const Matrix& features, int64_t max_selected) {
    features_ = &features;
    const int64_t num_tokens = features.num_rows;
    bounds_.assign(num_tokens, -std::numeric_limits<float>::infinity());
    norms_.resize(num_tokens);
    num_seen_.assign(num_tokens, 0);
    is_selected_.assign(num_tokens, false);
    tree_.reset(num_tokens);
    rows_.clear();
    row_norms_.clear();
    if (!features.in_place()) {
      row_storage_.resize(std::min(max_selected, num_tokens) * features.num_columns);
      token_storage_.resize(features.num_columns);
    }
  }

  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }

  uint64_t key(int64_t n) const { return smallest_first(bounds_[n], n); }

  void select(int64_t index) {
    if (is_selected_[index]) return;
    const int64_t dim = features_->num_columns;
    const int64_t offset = features_->in_place() ? 0 : num_rows() * dim;
    const float* row = features_->load(index, kernels_, row_storage_.data() + offset);
    float square;
    kernels_.squares(&row, 1, dim, &square);
    rows_.push_back(row);
    row_norms_.push_back(std::sqrt(square));
    is_selected_[index] = true;
  }

  // A first bound and the norm of every candidate.
  template <class Parallel>
  void scan(int64_t num_picks, const Parallel& parallel) {
    queue_stale(kRetired - 1);
    if (queue_.empty()) return;
    const auto num_candidates = static_cast<double>(queue_.size());
    refresh_queue(0, parallel);
    if (num_rows() <= kChunk) return;
    // Pivots are alike in how they cover: if a fraction f of the tokens stays below some value for
    // one chunk of them, f^(number of chunks) stays below it for all. Turned around, that foretells
    // the bound which the pivots will leave only `num_picks` tokens below, so that most of the
    // refreshing happens in one go. A wrong forecast costs time and changes nothing else.
    const double chunks = static_cast<double>(num_rows()) / kChunk;
    const double rank = num_candidates * std::pow(num_picks / num_candidates, 1 / chunks);
    const uint64_t limit = nth_smallest_key(static_cast<int64_t>(rank));
    queue_stale(limit);
    refresh_queue(limit, parallel);
  }

  // Raises the bounds of the tokens that the next `num_picks` picks cannot do without.
  template <class Parallel>
  void sweep(int64_t num_picks, const Parallel& parallel) {
    while (true) {
      // Half as many again as are sure to be needed: most of these are in the end, and there are
      // fewer, larger rounds.
      const uint64_t limit = nth_smallest_key(num_picks + num_picks / 2);
      queue_stale(limit);
      // Few are left: refreshing them best first costs less than another look at all the keys.
      const int64_t few = std::max(kTileTokens, features_->num_rows / 64);
      if (static_cast<int64_t>(queue_.size()) < few) break;
      refresh_queue(limit, parallel);
    }
    tree_.play_all();
  }

  // Queues the candidates with keys up to `limit` that have not seen every selection.
  void queue_stale(uint64_t limit) {
    queue_.clear();
    for (int64_t n = 0; n < features_->num_rows; ++n) {
      if (tree_.leaf(n) <= limit && num_seen_[n] < num_rows()) queue_.push_back(n);
    }
    std::sort(queue_.begin(), queue_.end(), [this](int64_t a, int64_t b) {
      return num_seen_[a] != num_seen_[b] ? num_seen_[a] < num_seen_[b] : a < b;
    });
  }

  template <class Parallel>
  void refresh_queue(uint64_t limit, const Parallel& parallel) {
    parallel(static_cast<int64_t>(queue_.size()), [this, limit](int64_t begin, int64_t end) {
      refresh(queue_.data() + begin, queue_.data() + end, limit);
    });
  }

  // The candidates' count-th smallest key; `count` is cut to 1..the number of candidates.
  uint64_t nth_smallest_key(int64_t count) {
    keys_.clear();
    for (int64_t n = 0; n < features_->num_rows; ++n) {
      if (tree_.leaf(n) != kRetired) keys_.push_back(tree_.leaf(n));
    }
    if (keys_.empty()) return 0;
    count = std::clamp<int64_t>(count, 1, static_cast<int64_t>(keys_.size()));
    const auto nth = keys_.begin() + count - 1;
    std::nth_element(keys_.begin(), nth, keys_.end());
    return *nth;
  }

  // Compares each token with the selections it has not seen, a chunk at a time, until its key is
  // above `limit` or exact. Tokens that have seen equally many are neighbours and share tiles.
  void refresh(int64_t* begin, int64_t* end, uint64_t limit) {
    std::vector<float> storage(features_->in_place() ? 0 : kTileTokens * features_->num_columns);
    while (begin != end) {
      int64_t* kept = begin;
      for (int64_t* group = begin; group != end;) {
        int64_t* stop = group + 1;
        while (stop != end && stop - group < kTileTokens && num_seen_[*stop] == num_seen_[*group]) {
          ++stop;
        }
        compare(group, stop - group, storage.data());
        for (; group != stop; ++group) {
          if (tree_.leaf(*group) <= limit && num_seen_[*group] < num_rows()) *kept++ = *group;
        }
      }
      end = kept;
    }
  }

  // The candidate that is covered least, ties to the lower index; -1 when none is left.
  int64_t next() {
    while (tree_.best() != kRetired) {
      const int64_t n = key_index(tree_.best());
      if (num_seen_[n] == num_rows()) return n;
      const uint64_t runner_up = tree_.best_other_than(n);
      do {
        compare(&n, 1, token_storage_.data());
      } while (num_seen_[n] < num_rows() && key(n) < runner_up);
      tree_.update(n, key(n));
    }
    return -1;
  }

  // Compares up to kTileTokens tokens that have seen equally many selections with the next ones,
  // and sets their bounds and leaves.
  void compare(const int64_t* tokens, int64_t num_tokens, float* storage) {
    const int64_t dim = features_->num_columns;
    const int64_t first = num_seen_[tokens[0]];
    const int64_t count = std::min(num_rows() - first, kChunk);
    const float* loaded[kTileTokens] = {};
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t offset = features_->in_place() ? 0 : t * dim;
      loaded[t] = features_->load(tokens[t], kernels_, storage + offset);
    }
    if (first == 0) {
      float squares[kTileTokens];
      kernels_.squares(loaded, num_tokens, dim, squares);
      for (int64_t t = 0; t < num_tokens; ++t) norms_[tokens[t]] = std::sqrt(squares[t]);
    }
    float dots[kTileTokens * kChunk];
    kernels_.tile(loaded, num_tokens, rows_.data() + first, count, dim, dots);
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t n = tokens[t];
      const float norm = norms_[n];
      float bound = bounds_[n];
      for (int64_t r = 0; r < count; ++r) {
        bound = std::max(bound, cosine(dots[t * count + r], norm, row_norms_[first + r]));
      }
      bounds_[n] = bound;
      num_seen_[n] = static_cast<int32_t>(first + count);
      tree_.set_leaf(n, key(n));
    }
  }

  const Kernels& kernels_;
  const Matrix* features_ = nullptr;
  std::vector<float> bounds_;       // [N] the largest similarity to rows_[0 .. num_seen_[n])
  std::vector<float> norms_;        // [N]
  std::vector<int32_t> num_seen_;   // [N]
  std::vector<char> is_selected_;   // [N]
  WinnerTree tree_;                 // over bounds_; only candidates take part
  std::vector<const float*> rows_;  // the selected tokens, in order of selection
  std::vector<float> row_norms_;
  std::vector<float> row_storage_;  // selected tokens that cannot be read in place
  std::vector<float> token_storage_;
  std::vector<int64_t> queue_;
  std::vector<uint64_t> keys_;
};

}  // namespace clasp
