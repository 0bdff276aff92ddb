// Greedy facility location under cosine similarity, evaluated lazily.
//
// The gain of token j is preference[j] * sum over n of weight[n] * max(0, s[j, n] - best[n]), where
// best[n] is the largest similarity of n to a selected token. It never grows while tokens are
// selected, so a gain computed earlier is an upper bound: only the token with the largest bound is
// computed again, until the largest bound is exact. Rounding keeps this order, because every gain
// is summed in the same order.
//
// The similarities of all pairs are computed once, in tiles, for the first gains. Their rows are
// kept while they fit in the workspace. In larger images, the rows that are needed again are
// computed again, a few candidates at a time, and the workspace keeps the latest of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "algorithms/matrix.h"
#include "algorithms/norms.h"
#include "algorithms/weights.h"
#include "algorithms/winner_tree.h"
#include "shared/order.h"
#include "simd/kernels.h"

namespace clasp {

// Covers one image at a time; the buffers are reused between images.
class Covering {
 public:
  static constexpr int64_t kWorkspaceBytes = 64 * 1024 * 1024;

  explicit Covering(const Kernels& kernels, int64_t workspace_bytes = kWorkspaceBytes)
      : kernels_(kernels), workspace_bytes_(workspace_bytes) {}

  // Picks up to `num_picks` tokens, writes them to `picks` in the order of picking and returns
  // their number. `selected` are row indices. `weights` and `preference` have a value for each row,
  // or are null. `valid(n)` tells whether row n may be picked and is to be covered.
  // `parallel(count, body)` runs body(begin, end) over ranges that cover 0..count.
  template <class Valid, class Parallel>
  int64_t run(const Matrix& features, const int64_t* selected, int64_t num_selected,
              int64_t num_picks, const float* weights, const float* preference, const Valid& valid,
              const Parallel& parallel, int64_t* picks) {
    if (num_picks == 0) return 0;
    set_tokens(features, valid);
    set_weights(weights, preference, features.num_rows, valid);
    norms_.resize(num_tokens());
    compute_norms(*dots_, rows_.data(), num_tokens(), dim_, norms_.data());
    cover_with_selected(features, selected, num_selected, parallel);
    is_candidate_.assign(num_tokens(), true);
    for (int64_t i = 0; i < num_selected; ++i) {
      const int64_t place = places_[selected[i]];
      if (place >= 0) is_candidate_[place] = false;
    }
    compute_first_gains(parallel);

    int64_t num_picked = 0;
    while (num_picked < num_picks) {
      const int64_t pick = next(num_picked, parallel);
      if (pick < 0) break;
      picks[num_picked++] = tokens_[pick];
      tree_.update(pick, kRetired);
      // No later pick is compared with the last one.
      if (num_picked == num_picks) break;
      kernels_.raise_to(row_of(pick), num_tokens(), best_.data());
      release(pick);
    }
    return num_picked;
  }

 private:
  // A block of tokens is compared with a block of tokens; both fit in the L2 cache.
  static constexpr int64_t kCacheBytes = 256 * 1024;
  static constexpr int64_t kMaxBlock = 64;

  int64_t num_tokens() const { return static_cast<int64_t>(tokens_.size()); }

  // Lists the valid tokens. Only they are covered and picked.
  template <class Valid>
  void set_tokens(const Matrix& features, const Valid& valid) {
    dots_ = &kernels_.dots(features.scalar);
    dim_ = features.num_columns;
    row_bytes_ = dim_ * scalar_size(features.scalar);
    tokens_.clear();
    places_.assign(features.num_rows, -1);
    for (int64_t n = 0; n < features.num_rows; ++n) {
      if (!valid(n)) continue;
      places_[n] = num_tokens();
      tokens_.push_back(n);
    }
    storage_.resize(features.has_contiguous_rows() ? 0 : num_tokens() * row_bytes_);
    rows_.resize(num_tokens());
    for (int64_t i = 0; i < num_tokens(); ++i) {
      rows_[i] = features.contiguous(tokens_[i], storage_.data() + i * row_bytes_);
    }
  }

  template <class Valid>
  void set_weights(const float* weights, const float* preference, int64_t num_rows,
                   const Valid& valid) {
    usable_weights(weights, num_rows, valid, weights_);
    usable_weights(preference, num_rows, valid, preference_);
    for (std::vector<float>* values : {&weights_, &preference_}) {
      if (values->empty()) continue;
      for (int64_t i = 0; i < num_tokens(); ++i) (*values)[i] = (*values)[tokens_[i]];
      values->resize(num_tokens());
    }
  }

  // best[n] = the largest similarity to a selected token, or 0.
  template <class Parallel>
  void cover_with_selected(const Matrix& features, const int64_t* selected, int64_t num_selected,
                           const Parallel& parallel) {
    best_.assign(num_tokens(), 0.0F);
    if (num_selected == 0) return;
    std::vector<char> copies(features.has_contiguous_rows() ? 0 : num_selected * row_bytes_);
    std::vector<const void*> rows(num_selected);
    std::vector<float> norms(num_selected);
    for (int64_t i = 0; i < num_selected; ++i) {
      rows[i] = features.contiguous(selected[i], copies.data() + i * row_bytes_);
    }
    compute_norms(*dots_, rows.data(), num_selected, dim_, norms.data());
    const int64_t num_tiles = (num_tokens() + kTileTokens - 1) / kTileTokens;
    parallel(num_tiles, [&](int64_t begin, int64_t end) {
      std::vector<float> similarities(kTileTokens * num_selected);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTileTokens;
        const int64_t count = std::min(kTileTokens, num_tokens() - first);
        dots_->tile(rows_.data() + first, count, rows.data(), num_selected, dim_, nullptr, 0,
                    similarities.data());
        for (int64_t t = 0; t < count; ++t) {
          float* row = similarities.data() + t * num_selected;
          kernels_.to_similarities(num_selected, norms_[first + t], norms.data(), row);
          best_[first + t] = *std::max_element(row, row + num_selected);
        }
      }
    });
  }

  // Computes the gain of every candidate, and all rows of similarities if they fit.
  template <class Parallel>
  void compute_first_gains(const Parallel& parallel) {
    const int64_t row_size = num_tokens() * int64_t{sizeof(float)};
    // A row of each candidate of a tile has to fit.
    capacity_ = std::max(workspace_bytes_ / std::max<int64_t>(row_size, 1), kTileTokens);
    capacity_ = std::min(capacity_, num_tokens());
    similarities_.resize(capacity_ * num_tokens());
    tree_.reset(num_tokens());
    num_seen_.assign(num_tokens(), 0);
    slots_.assign(num_tokens(), -1);
    owners_.assign(capacity_, -1);
    next_slot_ = 0;
    if (capacity_ == num_tokens()) {
      for (int64_t i = 0; i < num_tokens(); ++i) slots_[i] = owners_[i] = i;
      fill_matrix(parallel);
      parallel(num_tokens(), [this](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) set_gain(i, row_of(i));
      });
    } else {
      const int64_t num_tiles = (num_tokens() + kTileTokens - 1) / kTileTokens;
      parallel(num_tiles, [this](int64_t begin, int64_t end) {
        std::vector<float> rows(kTileTokens * num_tokens());
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t first = tile * kTileTokens;
          const int64_t count = std::min(kTileTokens, num_tokens() - first);
          compare(rows_.data() + first, norms_.data() + first, count, 0, num_tokens(), rows.data(),
                  num_tokens());
          for (int64_t t = 0; t < count; ++t) {
            set_gain(first + t, rows.data() + t * num_tokens());
          }
        }
      });
    }
    tree_.play_all();
  }

  void set_gain(int64_t i, const float* row) {
    if (is_candidate_[i]) tree_.set_leaf(i, key(i, row));
  }

  // The largest gain first, ties to the lower index.
  uint64_t key(int64_t i, const float* row) const {
    const float* weights = weights_.empty() ? nullptr : weights_.data();
    float gain = kernels_.gain(row, best_.data(), weights, num_tokens());
    if (!preference_.empty()) gain *= preference_[i];
    return ranked(~ordered_bits(gain), i);
  }

  float* row_of(int64_t i) { return similarities_.data() + slots_[i] * num_tokens(); }

  // Computes the similarities of up to kTileTokens rows with the tokens [begin, end). Row t begins
  // at out + t * stride.
  void compare(const void* const* rows, const float* norms, int64_t count, int64_t begin,
               int64_t end, float* out, int64_t stride) const {
    float dots[kTileTokens * kMaxBlock];
    for (int64_t first = begin; first < end; first += kMaxBlock) {
      const int64_t width = std::min(kMaxBlock, end - first);
      dots_->tile(rows, count, rows_.data() + first, width, dim_, nullptr, 0, dots);
      for (int64_t t = 0; t < count; ++t) {
        float* row = dots + t * width;
        kernels_.to_similarities(width, norms[t], norms_.data() + first, row);
        std::copy(row, row + width, out + t * stride + (first - begin));
      }
    }
  }

  // Computes the similarities of all pairs, each once.
  template <class Parallel>
  void fill_matrix(const Parallel& parallel) {
    const int64_t fitting = kCacheBytes / std::max<int64_t>(row_bytes_, 1);
    const int64_t block =
        std::clamp<int64_t>(fitting, kTileTokens, kMaxBlock) / kTileTokens * kTileTokens;
    const int64_t num_blocks = (num_tokens() + block - 1) / block;
    pairs_.clear();
    for (int64_t i = 0; i < num_blocks; ++i) {
      for (int64_t j = i; j < num_blocks; ++j) pairs_.push_back({i * block, j * block});
    }
    parallel(static_cast<int64_t>(pairs_.size()), [this, block](int64_t begin, int64_t end) {
      for (int64_t pair = begin; pair < end; ++pair) {
        fill_block(pairs_[pair].first, pairs_[pair].second, block);
      }
    });
  }

  void fill_block(int64_t first_row, int64_t first_column, int64_t block) {
    const int64_t stride = num_tokens();
    const int64_t end_row = std::min(first_row + block, stride);
    const int64_t end_column = std::min(first_column + block, stride);
    for (int64_t i = first_row; i < end_row; i += kTileTokens) {
      const int64_t count = std::min(kTileTokens, end_row - i);
      // On the diagonal, the columns to the left are those of earlier rows.
      const int64_t begin = first_row == first_column ? i : first_column;
      float* out = similarities_.data() + i * stride + begin;
      compare(rows_.data() + i, norms_.data() + i, count, begin, end_column, out, stride);
      for (int64_t j = begin; j < end_column; ++j) {
        float* mirrored = similarities_.data() + j * stride + i;
        for (int64_t t = 0; t < count; ++t) mirrored[t] = out[t * stride + (j - begin)];
      }
    }
  }

  // Returns the candidate with the largest gain, with its row in the workspace, or -1 when none is
  // left.
  template <class Parallel>
  int64_t next(int64_t num_picked, const Parallel& parallel) {
    while (tree_.best() != kRetired) {
      const int64_t i = key_index(tree_.best());
      if (slots_[i] < 0) {
        fetch_rows(i, num_picked, parallel);
      } else if (num_seen_[i] == num_picked) {
        return i;
      } else {
        num_seen_[i] = num_picked;
        tree_.update(i, key(i, row_of(i)));
      }
    }
    return -1;
  }

  // Computes the row of the best candidate, and those of the next best ones that have none, as they
  // share the loads of all features.
  template <class Parallel>
  void fetch_rows(int64_t best, int64_t num_picked, const Parallel& parallel) {
    int64_t fetched[kTileTokens];
    int64_t count = 0;
    for (int64_t i = best; count < kTileTokens; i = key_index(tree_.best())) {
      fetched[count++] = i;
      tree_.update(i, kRetired);
      if (tree_.best() == kRetired || slots_[key_index(tree_.best())] >= 0) break;
    }
    const void* rows[kTileTokens];
    float norms[kTileTokens];
    float* out[kTileTokens];
    for (int64_t t = 0; t < count; ++t) {
      rows[t] = rows_[fetched[t]];
      norms[t] = norms_[fetched[t]];
      take_slot(fetched[t]);
      out[t] = row_of(fetched[t]);
    }
    parallel(num_tokens(), [&](int64_t begin, int64_t end) {
      std::vector<float> part(count * (end - begin));
      compare(rows, norms, count, begin, end, part.data(), end - begin);
      for (int64_t t = 0; t < count; ++t) {
        const float* from = part.data() + t * (end - begin);
        std::copy(from, from + (end - begin), out[t] + begin);
      }
    });
    for (int64_t t = 0; t < count; ++t) {
      num_seen_[fetched[t]] = num_picked;
      tree_.update(fetched[t], key(fetched[t], out[t]));
    }
  }

  // Gives a token a row of the workspace; the token that has held one longest loses it.
  void take_slot(int64_t i) {
    if (owners_[next_slot_] >= 0) slots_[owners_[next_slot_]] = -1;
    owners_[next_slot_] = i;
    slots_[i] = next_slot_;
    next_slot_ = (next_slot_ + 1) % capacity_;
  }

  void release(int64_t i) {
    owners_[slots_[i]] = -1;
    slots_[i] = -1;
  }

  struct Pair {
    int64_t first, second;
  };

  const Kernels& kernels_;
  int64_t workspace_bytes_;
  const DotProducts* dots_ = nullptr;
  int64_t dim_ = 0;
  int64_t row_bytes_ = 0;
  // Below, [M] has a value for each valid token.
  std::vector<int64_t> tokens_;      // [M] their indices
  std::vector<int64_t> places_;      // [N] their places in tokens_, or -1
  std::vector<const void*> rows_;    // [M]
  std::vector<char> storage_;        // copies of rows with strided columns
  std::vector<float> norms_;         // [M]
  std::vector<float> weights_;       // [M], or empty if all are equal
  std::vector<float> preference_;    // [M], or empty if all are equal
  std::vector<float> best_;          // [M]
  std::vector<char> is_candidate_;   // [M]
  std::vector<int64_t> num_seen_;    // [M] the number of picks that the gain knows of
  WinnerTree tree_;                  // over the gains; contains candidates only
  int64_t capacity_ = 0;             // of the workspace, in rows
  std::vector<float> similarities_;  // [capacity, M]
  std::vector<int64_t> slots_;       // [M] a token's row in the workspace, or -1
  std::vector<int64_t> owners_;      // [capacity] the token of a row, or -1
  int64_t next_slot_ = 0;
  std::vector<Pair> pairs_;
};

}  // namespace clasp
