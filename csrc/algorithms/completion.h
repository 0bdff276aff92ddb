// Greedy farthest-first completion under cosine similarity, evaluated lazily.
//
// covered[n] = max over selected j of cos(n, j) never decreases while tokens are selected. A value
// computed before the latest selections is therefore a lower bound, and these bounds rule out most
// tokens. Bounds are raised in two ways. Both pick exactly the tokens that an eager evaluation
// picks, ties included:
//
// - best first: refresh the token with the smallest bound until the smallest bound is exact. That
//   token is the next pick. No evaluation is wasted, but tokens are evaluated one at a time.
// - sweeps: with m picks left, the last pick is covered at least as much as the m-th smallest
//   bound. Every token with a smaller bound has to be refreshed before that pick. These tokens are
//   refreshed together, in tiles and in parallel, with little wasted work.
//
// With weights, each pick has the largest weight[n] * (1 - covered[n]) instead, which never
// increases. What is said of the smallest bounds then holds for the largest gains. Both are the
// smallest keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "algorithms/matrix.h"
#include "algorithms/norms.h"
#include "algorithms/weights.h"
#include "algorithms/winner_tree.h"
#include "shared/cosine.h"
#include "shared/order.h"
#include "shared/weights.h"
#include "simd/kernels.h"

namespace clasp {

// Turns dot products into cosine similarities in place. Branch-free, so that it vectorizes.
inline void to_cosines(int64_t count, float norm, const float* norms, float* dots) {
  for (int64_t i = 0; i < count; ++i) dots[i] = cosine(dots[i], norm, norms[i]);
}

// Completes one image at a time; the buffers are reused between images.
class Completion {
 public:
  explicit Completion(const Kernels& kernels) : kernels_(kernels) {}

  // Picks up to `num_picks` tokens, writes them to `picks` in the order of picking and returns
  // their number. `selected` are row indices. `weights` has a weight for each row, or is null.
  // `available(n)` tells whether row n may be picked. `parallel(count, body)` runs body(begin, end)
  // over ranges that cover 0..count.
  template <class Available, class Parallel>
  int64_t run(const Matrix& features, const int64_t* selected, int64_t num_selected,
              int64_t num_picks, const float* weights, const Available& available,
              const Parallel& parallel, int64_t* picks) {
    reset(features, num_selected + num_picks);
    usable_weights(weights, features.num_rows, available, weights_);
    for (int64_t i = 0; i < num_selected; ++i) select(selected[i]);
    for (int64_t n = 0; n < features.num_rows; ++n) {
      if (!is_selected_[n] && available(n)) tree_.set_leaf(n, key(n));
    }
    tree_.play_all();

    int64_t num_picked = 0;
    int64_t next_sweep = 1;
    while (num_picked < num_picks) {
      if (num_rows() >= next_sweep) {
        if (next_sweep == 1) scan(num_picks - num_picked, parallel);
        sweep(num_picks - num_picked, parallel);
        next_sweep = num_rows() + kChunk;
      }
      const int64_t pick = next();
      if (pick < 0) break;
      picks[num_picked++] = pick;
      tree_.update(pick, kRetired);
      // No later pick is compared with the last one.
      if (num_picked < num_picks) select(pick);
    }
    return num_picked;
  }

 private:
  // Number of selections a token is compared with before its bound is checked again.
  static constexpr int64_t kChunk = 8;
  // forecast() refreshes a sample of one candidate in this many.
  static constexpr int64_t kSampleStride = 8;
  // A share of refreshing has at least this many tokens, enough to outweigh waking a thread.
  static constexpr int64_t kShareTokens = 32;
  static constexpr int64_t kMaxShares = 64;
  // Size of a batch of tokens. A batch stays in a thread's L2 cache.
  static constexpr int64_t kBatchBytes = 256 * 1024;

  void reset(const Matrix& features, int64_t max_selected) {
    features_ = &features;
    dots_ = &kernels_.dots(features.scalar);
    const int64_t num_tokens = features.num_rows;
    bounds_.assign(num_tokens, -std::numeric_limits<float>::infinity());
    norms_.resize(num_tokens);
    num_seen_.assign(num_tokens, 0);
    is_selected_.assign(num_tokens, false);
    tree_.reset(num_tokens);
    rows_.clear();
    row_norms_.clear();
    if (!features.has_contiguous_rows()) {
      row_storage_.resize(std::min(max_selected, num_tokens) * row_bytes());
      token_storage_.resize(row_bytes());
    }
  }

  int64_t row_bytes() const { return features_->num_columns * scalar_size(features_->scalar); }

  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }

  static constexpr uint32_t kRetiredRank = kRetired >> 32;
  static uint32_t rank_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }

  uint64_t key(int64_t n) const {
    return weights_.empty() ? smallest_first(bounds_[n], n)
                            : completion_key(weights_[n], bounds_[n], n);
  }

  // Whether the key of a token stays as it is until the next selection. Without a weight, it always
  // does.
  bool is_exact(int64_t n) const {
    return num_seen_[n] == num_rows() || (!weights_.empty() && weights_[n] == 0.0F);
  }

  void select(int64_t index) {
    if (is_selected_[index]) return;
    void* buffer = row_storage_.empty() ? nullptr : &row_storage_[num_rows() * row_bytes()];
    const void* row = features_->contiguous(index, buffer);
    float norm;
    compute_norms(*dots_, &row, 1, features_->num_columns, &norm);
    rows_.push_back(row);
    row_norms_.push_back(norm);
    is_selected_[index] = true;
  }

  // Computes a first bound and the norm of every candidate.
  template <class Parallel>
  void scan(int64_t num_picks, const Parallel& parallel) {
    queue_stale(kRetired - 1);
    const auto num_candidates = static_cast<int64_t>(queue_.size());
    if (num_candidates == 0) return;
    uint64_t limit = 0;
    if (num_rows() > kChunk) {
      limit = forecast(num_picks, num_candidates, parallel);
      queue_stale(kRetired - 1);
    }
    refresh_queue(limit, parallel);
  }

  // Estimates a key such that about `num_picks` tokens are still below it after all selections so
  // far, so that one pass does most of the refreshing. The estimate assumes that every chunk of
  // selections leaves the same fraction f of the tokens below a given value. After all chunks,
  // f^(number of chunks) of the tokens are below it. A sample of the tokens gives f. A wrong
  // estimate costs time but does not change the result.
  template <class Parallel>
  uint64_t forecast(int64_t num_picks, int64_t num_candidates, const Parallel& parallel) {
    int64_t sample = 0;
    for (int64_t i = 0; i < num_candidates; i += kSampleStride) queue_[sample++] = queue_[i];
    queue_.resize(sample);
    refresh_queue(0, parallel);
    ranks_.clear();
    for (const int64_t n : queue_) ranks_.push_back(rank_of(tree_.leaf(n)));
    const double chunks = static_cast<double>(num_rows()) / kChunk;
    const double remaining = static_cast<double>(num_picks) / static_cast<double>(num_candidates);
    const double below = std::pow(std::min(remaining, 1.0), 1 / chunks);
    return limit_of(static_cast<int64_t>(below * static_cast<double>(sample)));
  }

  // Raises the bounds of the tokens that the next `num_picks` picks cannot do without.
  template <class Parallel>
  void sweep(int64_t num_picks, const Parallel& parallel) {
    while (true) {
      // 1.5 times the number that is certainly needed: most of the extra tokens are needed later,
      // and the rounds become fewer and larger.
      const uint64_t limit = limit_for(num_picks + num_picks / 2);
      queue_stale(limit);
      // When few tokens are left, refreshing them best first costs less than scanning all keys
      // again.
      const int64_t few = std::max(kTileTokens, features_->num_rows / 64);
      if (static_cast<int64_t>(queue_.size()) < few) break;
      refresh_queue(limit, parallel);
    }
    tree_.play_all();
  }

  // Queues the candidates with keys up to `limit` that have not been compared with every selection.
  // The candidates with the fewest comparisons come first.
  void queue_stale(uint64_t limit) {
    queue_.clear();
    int32_t fewest = std::numeric_limits<int32_t>::max();
    int32_t most = 0;
    for (int64_t n = 0; n < features_->num_rows; ++n) {
      if (tree_.leaf(n) > limit || is_exact(n)) continue;
      queue_.push_back(n);
      fewest = std::min(fewest, num_seen_[n]);
      most = std::max(most, num_seen_[n]);
    }
    if (fewest >= most) return;
    std::sort(queue_.begin(), queue_.end(), [this](int64_t a, int64_t b) {
      return num_seen_[a] != num_seen_[b] ? num_seen_[a] < num_seen_[b] : a < b;
    });
  }

  // Refreshes the queued tokens, in shares that may run in parallel. The tiles are dealt to the
  // shares in turn, because tokens at the front of the queue have the most comparisons left.
  template <class Parallel>
  void refresh_queue(uint64_t limit, const Parallel& parallel) {
    const auto size = static_cast<int64_t>(queue_.size());
    const int64_t num_shares = std::clamp<int64_t>(size / kShareTokens, 1, kMaxShares);
    int64_t starts[kMaxShares + 1];
    dealt_.clear();
    for (int64_t share = 0; share < num_shares; ++share) {
      starts[share] = static_cast<int64_t>(dealt_.size());
      for (int64_t i = share * kTileTokens; i < size; i += num_shares * kTileTokens) {
        const int64_t count = std::min(kTileTokens, size - i);
        dealt_.insert(dealt_.end(), queue_.begin() + i, queue_.begin() + i + count);
      }
    }
    starts[num_shares] = size;
    parallel(num_shares, [this, limit, &starts](int64_t begin, int64_t end) {
      refresh(dealt_.data() + starts[begin], dealt_.data() + starts[end], limit);
    });
  }

  // Returns a limit such that at least `count` keys, and only a few more, are at most that limit.
  uint64_t limit_for(int64_t count) {
    ranks_.resize(features_->num_rows);
    for (int64_t n = 0; n < features_->num_rows; ++n) ranks_[n] = rank_of(tree_.leaf(n));
    return limit_of(count);
  }

  // As limit_for(), over ranks_. Bisects, with a branch-free count in each step.
  uint64_t limit_of(int64_t count) const {
    const auto size = static_cast<int64_t>(ranks_.size());
    uint32_t low = kRetiredRank;
    uint32_t high = 0;
    for (const uint32_t rank : ranks_) {
      low = std::min(low, rank);
      high = std::max(high, rank == kRetiredRank ? 0 : rank);
    }
    const int64_t enough = count + count / 16;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      const int64_t found = kernels_.count_up_to(ranks_.data(), size, middle);
      if (found < count) {
        low = middle + 1;
      } else {
        high = middle;
        if (found <= enough) break;
      }
    }
    return uint64_t{high} << 32 | 0xFFFFFFFFU;
  }

  // Compares each token with its unseen selections, a chunk at a time, until its key is above
  // `limit` or exact. Each batch of tokens is finished before the next one begins, so that its rows
  // stay in the cache.
  void refresh(int64_t* begin, int64_t* end, uint64_t limit) {
    std::vector<char> storage(features_->has_contiguous_rows() ? 0 : kTileTokens * row_bytes());
    const int64_t batch =
        std::max(kBatchBytes / std::max<int64_t>(row_bytes(), 1), 4 * kTileTokens);
    while (begin != end) {
      int64_t* const batch_end = end - begin > batch ? begin + batch : end;
      int64_t* stop = batch_end;
      while (begin != stop) stop = refresh_once(begin, stop, end, limit, storage.data());
      begin = batch_end;
    }
  }

  // Compares each token of [begin, stop) with one chunk, moves the tokens that need more to the
  // front and returns their end. Tokens with equal num_seen_ are adjacent and share tiles. The
  // tokens of [stop, end) are only prefetched.
  int64_t* refresh_once(int64_t* begin, int64_t* stop, const int64_t* end, uint64_t limit,
                        char* storage) {
    int64_t* kept = begin;
    for (int64_t* group = begin; group != stop;) {
      int64_t* next = group + 1;
      while (next != stop && next - group < kTileTokens && num_seen_[*next] == num_seen_[*group]) {
        ++next;
      }
      compare(group, next - group, next, end - next, storage);
      for (; group != next; ++group) {
        if (tree_.leaf(*group) <= limit && num_seen_[*group] < num_rows()) *kept++ = *group;
      }
    }
    return kept;
  }

  // Returns the least covered candidate, ties to the lower index, or -1 when none is left.
  int64_t next() {
    while (tree_.best() != kRetired) {
      const int64_t n = key_index(tree_.best());
      if (is_exact(n)) return n;
      const uint64_t runner_up = tree_.best_other_than(n);
      const int64_t likely = key_index(runner_up);
      const int64_t num_likely = runner_up == kRetired ? 0 : 1;
      do {
        compare(&n, 1, &likely, num_likely, token_storage_.data());
      } while (num_seen_[n] < num_rows() && key(n) < runner_up);
      tree_.update(n, key(n));
    }
    return -1;
  }

  // Compares up to kTileTokens tokens with equal num_seen_ with their next chunk of selections, and
  // updates their bounds and leaves. Prefetches the first of the `later` tokens.
  void compare(const int64_t* tokens, int64_t num_tokens, const int64_t* later, int64_t num_later,
               char* storage) {
    const int64_t dim = features_->num_columns;
    const int64_t first = num_seen_[tokens[0]];
    const int64_t count = std::min(num_rows() - first, kChunk);
    const void* loaded[kTileTokens] = {};
    const void* ahead[kTileTokens] = {};
    for (int64_t t = 0; t < num_tokens; ++t) {
      char* buffer = storage ? storage + t * row_bytes() : nullptr;
      loaded[t] = features_->contiguous(tokens[t], buffer);
    }
    const int64_t num_ahead = std::min(num_later, kTileTokens);
    for (int64_t t = 0; t < num_ahead; ++t) ahead[t] = features_->row(later[t]);
    float dots[kTileTokens * kChunk];
    dots_->tile(loaded, num_tokens, rows_.data() + first, count, dim, ahead, num_ahead, dots);
    // Computed after the tile, because the tile overlaps arithmetic with the memory loads better.
    if (first == 0) {
      float norms[kTileTokens];
      compute_norms(*dots_, loaded, num_tokens, dim, norms);
      for (int64_t t = 0; t < num_tokens; ++t) norms_[tokens[t]] = norms[t];
    }
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t n = tokens[t];
      float* similarities = dots + t * count;
      to_cosines(count, norms_[n], &row_norms_[first], similarities);
      const float bound =
          std::max(bounds_[n], *std::max_element(similarities, similarities + count));
      bounds_[n] = bound;
      num_seen_[n] = static_cast<int32_t>(first + count);
      tree_.set_leaf(n, key(n));
    }
  }

  const Kernels& kernels_;
  const Matrix* features_ = nullptr;
  const DotProducts* dots_ = nullptr;
  std::vector<float> bounds_;      // [N] the largest similarity to rows_[0 .. num_seen_[n])
  std::vector<float> weights_;     // [N], or empty if all weights are equal
  std::vector<float> norms_;       // [N]
  std::vector<int32_t> num_seen_;  // [N]
  std::vector<char> is_selected_;  // [N]
  WinnerTree tree_;                // over bounds_; contains candidates only
  std::vector<const void*> rows_;  // the selected tokens, in order of selection
  std::vector<float> row_norms_;
  std::vector<char> row_storage_;  // copies of selected tokens with strided columns
  std::vector<char> token_storage_;
  std::vector<int64_t> queue_;
  std::vector<int64_t> dealt_;
  std::vector<uint32_t> ranks_;
};

}  // namespace clasp
