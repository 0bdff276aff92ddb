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

#include "algorithms/matrix.h"
#include "algorithms/winner_tree.h"
#include "shared/cosine.h"
#include "shared/order.h"
#include "simd/kernels.h"

namespace clasp {

// Cosine similarities from dot products, in place. Free of branches, so that it vectorises.
inline void to_cosines(int64_t count, float norm, const float* norms, float* dots) {
  for (int64_t i = 0; i < count; ++i) dots[i] = cosine(dots[i], norm, norms[i]);
}

// Completes one image at a time; the buffers are kept from one to the next.
class Completion {
 public:
  explicit Completion(const Kernels& kernels) : kernels_(kernels) {}

  // Picks up to `num_picks` tokens and returns how many there were, written to `picks` in order.
  // `selected` are row indices, `available(n)` tells which of the other rows may be picked.
  // `parallel(count, body)` runs body(begin, end) over ranges that cover 0..count.
  template <class Available, class Parallel>
  int64_t run(const Matrix& features, const int64_t* selected, int64_t num_selected,
              int64_t num_picks, const Available& available, const Parallel& parallel,
              int64_t* picks) {
    reset(features, num_selected + num_picks);
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
      // Nothing is compared with the last one.
      if (num_picked < num_picks) select(pick);
    }
    return num_picked;
  }

 private:
  // Selections that a token is compared with before its bound is looked at again.
  static constexpr int64_t kChunk = 8;
  // One token in this many is compared first, to foretell what the others will need.
  static constexpr int64_t kSampleStride = 8;
  // A share of refreshing, which outweighs waking a thread, and how many shares there are at most.
  static constexpr int64_t kShareTokens = 32;
  static constexpr int64_t kMaxShares = 64;
  // What of a thread's second-level cache tokens may take.
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

  uint64_t key(int64_t n) const { return smallest_first(bounds_[n], n); }

  void select(int64_t index) {
    if (is_selected_[index]) return;
    void* buffer = row_storage_.empty() ? nullptr : &row_storage_[num_rows() * row_bytes()];
    const void* row = features_->contiguous(index, buffer);
    float square;
    dots_->squares(&row, 1, features_->num_columns, &square);
    rows_.push_back(row);
    row_norms_.push_back(std::sqrt(square));
    is_selected_[index] = true;
  }

  // A first bound and the norm of every candidate.
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

  // The key that the selections so far will leave about `num_picks` tokens below, so that one pass
  // does most of the refreshing. Selections are alike in how they cover: if a fraction f of the
  // tokens stays below some value for one chunk of them, f^(number of chunks) stays below it for
  // all. A few tokens tell the fraction. A wrong forecast costs time and changes nothing else.
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
      // Half as many again as are sure to be needed: most of these are in the end, and there are
      // fewer, larger rounds.
      const uint64_t limit = limit_for(num_picks + num_picks / 2);
      queue_stale(limit);
      // Few are left: refreshing them best first costs less than another look at all the keys.
      const int64_t few = std::max(kTileTokens, features_->num_rows / 64);
      if (static_cast<int64_t>(queue_.size()) < few) break;
      refresh_queue(limit, parallel);
    }
    tree_.play_all();
  }

  // Queues the candidates with keys up to `limit` that have not seen every selection, those that
  // have seen fewest first.
  void queue_stale(uint64_t limit) {
    queue_.clear();
    int32_t fewest = std::numeric_limits<int32_t>::max();
    int32_t most = 0;
    for (int64_t n = 0; n < features_->num_rows; ++n) {
      if (tree_.leaf(n) > limit || num_seen_[n] >= num_rows()) continue;
      queue_.push_back(n);
      fewest = std::min(fewest, num_seen_[n]);
      most = std::max(most, num_seen_[n]);
    }
    if (fewest >= most) return;
    std::sort(queue_.begin(), queue_.end(), [this](int64_t a, int64_t b) {
      return num_seen_[a] != num_seen_[b] ? num_seen_[a] < num_seen_[b] : a < b;
    });
  }

  // Refreshes what is queued, in shares that may run in parallel. Tiles are dealt out to them like
  // cards, as those at the front of the queue have the most to catch up with.
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

  // A key that `count` candidates or a few more have keys up to.
  uint64_t limit_for(int64_t count) {
    ranks_.resize(features_->num_rows);
    for (int64_t n = 0; n < features_->num_rows; ++n) ranks_[n] = rank_of(tree_.leaf(n));
    return limit_of(count);
  }

  // The same among ranks_: by bisection, in passes that count without branches.
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

  // Compares each token with the selections it has not seen, a chunk at a time, until its key is
  // above `limit` or exact. A batch of tokens is finished before the next one is begun, so that it
  // comes from the cache when it is needed again.
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

  // Compares each token of `begin .. stop` once, moves those that need more to the front and
  // returns where they end. Tokens that have seen equally many are neighbours and share tiles.
  // What follows until `end` comes later.
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

  // The candidate that is covered least, ties to the lower index; -1 when none is left.
  int64_t next() {
    while (tree_.best() != kRetired) {
      const int64_t n = key_index(tree_.best());
      if (num_seen_[n] == num_rows()) return n;
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

  // Compares up to kTileTokens tokens that have seen equally many selections with the next ones,
  // and sets their bounds and leaves. Of the tokens that come after them the first are asked for.
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
    // After the product, which overlaps arithmetic with waiting for memory better than this would.
    if (first == 0) {
      float squares[kTileTokens];
      dots_->squares(loaded, num_tokens, dim, squares);
      for (int64_t t = 0; t < num_tokens; ++t) norms_[tokens[t]] = std::sqrt(squares[t]);
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
  std::vector<float> norms_;       // [N]
  std::vector<int32_t> num_seen_;  // [N]
  std::vector<char> is_selected_;  // [N]
  WinnerTree tree_;                // over bounds_; only candidates take part
  std::vector<const void*> rows_;  // the selected tokens, in order of selection
  std::vector<float> row_norms_;
  std::vector<char> row_storage_;  // selected tokens that cannot be read in place
  std::vector<char> token_storage_;
  std::vector<int64_t> queue_;
  std::vector<int64_t> dealt_;
  std::vector<uint32_t> ranks_;
};

}  // namespace clasp
