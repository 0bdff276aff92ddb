// Merges one image's tokens. Each token joins its most similar kept token, and each group is
// replaced by its mean.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "algorithms/gathering.h"
#include "algorithms/matrix.h"
#include "algorithms/norms.h"
#include "shared/scalar.h"
#include "simd/kernels.h"

namespace clasp {

// Merges one image at a time; the buffers are reused between images.
class Merging {
 public:
  explicit Merging(const Kernels& kernels) : kernels_(kernels) {}

  // Writes the mean of each group of `tokens` to `num_slots` consecutive rows from `out` on.
  // `kept(slot)` is the token that the slot keeps. The output row is zeros if `kept(slot)` is
  // negative or repeats an earlier slot's token. `valid(n)` tells whether token n, if not kept,
  // joins a group. Tokens join by the cosine similarity of `features`, ties to the lower kept
  // token. `parallel(count, body)` runs body(begin, end) over ranges that cover 0..count.
  template <class Kept, class Valid, class Parallel>
  void run(const Matrix& tokens, const Matrix& features, int64_t num_slots, const Kept& kept,
           const Valid& valid, const Parallel& parallel, void* out) {
    find_kept(features, num_slots, kept);
    find_joining(features, valid);
    join(parallel);
    list_members(num_slots);
    average(tokens, num_slots, parallel, out);
  }

 private:
  // Batches of tokens are compared with blocks of kept tokens, both sized for the L2 cache. Tokens
  // are read from memory once; kept tokens are read again from the L3 cache for each batch.
  static constexpr int64_t kCacheBytes = 256 * 1024;
  static constexpr int64_t kMaxBlock = 128;
  // Number of rows that are summed in one pass.
  static constexpr int64_t kRows = 8;
  // Averaging a smaller image takes less time than waking another thread.
  static constexpr int64_t kParallelElements = 64 * 1024;

  template <class Kept>
  void find_kept(const Matrix& features, int64_t num_slots, const Kept& kept) {
    features_ = &features;
    dots_ = &kernels_.dots(features.scalar);
    row_bytes_ = features.num_columns * scalar_size(features.scalar);
    slots_.assign(features.num_rows, -1);
    for (int64_t slot = 0; slot < num_slots; ++slot) {
      const int64_t n = kept(slot);
      if (n >= 0 && slots_[n] < 0) slots_[n] = slot;
    }
    kept_slots_.clear();
    kept_rows_.clear();
    for (int64_t n = 0; n < features.num_rows; ++n) {
      if (slots_[n] < 0) continue;
      kept_slots_.push_back(slots_[n]);
      kept_rows_.push_back(features.row(n));
    }
    if (!features.has_contiguous_rows()) {
      kept_storage_.resize(kept_rows_.size() * row_bytes_);
      char* copy = kept_storage_.data();
      size_t i = 0;
      for (int64_t n = 0; n < features.num_rows; ++n) {
        if (slots_[n] < 0) continue;
        kept_rows_[i++] = features.contiguous(n, copy);
        copy += row_bytes_;
      }
    }
    kept_norms_.resize(kept_rows_.size());
  }

  template <class Valid>
  void find_joining(const Matrix& features, const Valid& valid) {
    joining_.clear();
    if (kept_rows_.empty()) return;
    for (int64_t n = 0; n < features.num_rows; ++n) {
      if (slots_[n] < 0 && valid(n)) joining_.push_back(n);
    }
    best_.assign(joining_.size(), -std::numeric_limits<float>::infinity());
    norms_.resize(joining_.size());
  }

  // Finds the slot of every joining token.
  template <class Parallel>
  void join(const Parallel& parallel) {
    if (joining_.empty()) return;
    compute_norms(*dots_, kept_rows_.data(), static_cast<int64_t>(kept_rows_.size()),
                  features_->num_columns, kept_norms_.data());
    parallel(static_cast<int64_t>(joining_.size()),
             [this](int64_t begin, int64_t end) { join_range(begin, end); });
  }

  void join_range(int64_t begin, int64_t end) {
    std::vector<char> storage(features_->has_contiguous_rows() ? 0 : kTileTokens * row_bytes_);
    const auto num_kept = static_cast<int64_t>(kept_rows_.size());
    const int64_t fitting = kCacheBytes / std::max<int64_t>(row_bytes_, 1);
    const int64_t block = std::clamp<int64_t>(fitting, kTileTokens, kMaxBlock);
    const int64_t batch = block / kTileTokens * kTileTokens;
    for (; begin < end; begin += batch) {
      const int64_t batch_end = std::min(begin + batch, end);
      for (int64_t first = 0; first < num_kept; first += block) {
        const int64_t count = std::min(block, num_kept - first);
        for (int64_t i = begin; i < batch_end; i += kTileTokens) {
          compare(i, std::min(kTileTokens, batch_end - i), end, first, count, storage.data());
        }
      }
    }
  }

  // Compares joining_[begin .. begin + num_tokens) with the kept tokens first .. first + count - 1.
  // Prefetches the joining tokens that follow, up to `end`.
  void compare(int64_t begin, int64_t num_tokens, int64_t end, int64_t first, int64_t count,
               char* storage) {
    const void* rows[kTileTokens] = {};
    const void* ahead[kTileTokens] = {};
    for (int64_t t = 0; t < num_tokens; ++t) {
      rows[t] = features_->contiguous(joining_[begin + t], storage + t * row_bytes_);
    }
    int64_t num_ahead = 0;
    if (first == 0 && features_->has_contiguous_rows()) {
      num_ahead = std::min(end - begin - num_tokens, kTileTokens);
      for (int64_t t = 0; t < num_ahead; ++t) {
        ahead[t] = features_->row(joining_[begin + num_tokens + t]);
      }
    }
    float dots[kTileTokens * kMaxBlock];
    dots_->tile(rows, num_tokens, kept_rows_.data() + first, count, features_->num_columns, ahead,
                num_ahead, dots);
    if (first == 0) {
      compute_norms(*dots_, rows, num_tokens, features_->num_columns, norms_.data() + begin);
    }
    for (int64_t t = 0; t < num_tokens; ++t) {
      choose(begin + t, dots + t * count, first, count);
    }
  }

  // The similarity to a zero vector is 0. Any other non-finite similarity is below every finite
  // one.
  void choose(int64_t i, float* dots, int64_t first, int64_t count) {
    const float norm = norms_[i];
    const float* kept_norms = kept_norms_.data() + first;
    // Separate from the search below, so that this loop vectorizes.
    for (int64_t r = 0; r < count; ++r) dots[r] /= norm * kept_norms[r];
    float best = best_[i];
    for (int64_t r = 0; r < count; ++r) {
      float similarity = dots[r];
      if (norm == 0.0F || kept_norms[r] == 0.0F) {
        similarity = 0.0F;
      } else if (!std::isfinite(similarity)) {
        similarity = std::numeric_limits<float>::lowest();
      }
      if (similarity > best) {
        best = similarity;
        slots_[joining_[i]] = kept_slots_[first + r];
      }
    }
    best_[i] = best;
  }

  // Sorts the tokens by slot, in ascending order within a slot.
  void list_members(int64_t num_slots) {
    ends_.assign(num_slots + 1, 0);
    for (const int64_t slot : slots_) {
      if (slot >= 0) ++ends_[slot + 1];
    }
    for (int64_t slot = 0; slot < num_slots; ++slot) ends_[slot + 1] += ends_[slot];
    members_.resize(ends_[num_slots]);
    for (size_t n = 0; n < slots_.size(); ++n) {
      if (slots_[n] >= 0) members_[ends_[slots_[n]]++] = static_cast<int64_t>(n);
    }
  }

  // Splits the work by columns instead of slots, because groups differ in size. The summation order
  // within a column does not depend on the split.
  template <class Parallel>
  void average(const Matrix& tokens, int64_t num_slots, const Parallel& parallel, void* out) {
    const auto body = [&](int64_t begin, int64_t end) {
      switch (tokens.scalar) {
        case Scalar::float32:
          return average_columns(kernels_.fuse_float32, tokens, num_slots, begin, end,
                                 static_cast<float*>(out));
        case Scalar::bfloat16:
          return average_columns(kernels_.fuse_bfloat16, tokens, num_slots, begin, end,
                                 static_cast<Bfloat16*>(out));
        case Scalar::float16:
          return average_columns(kernels_.fuse_float16, tokens, num_slots, begin, end,
                                 static_cast<Float16*>(out));
      }
    };
    if (tokens.num_rows * tokens.num_columns < kParallelElements) {
      body(0, tokens.num_columns);
    } else {
      parallel(tokens.num_columns, body);
    }
  }

  template <class Element>
  void average_columns(const FuseKernels<Element>& kernels, const Matrix& tokens, int64_t num_slots,
                       int64_t begin, int64_t end, Element* out) const {
    Matrix part = tokens;
    part.data = static_cast<const Element*>(tokens.data) + begin * tokens.column_stride;
    part.num_columns = end - begin;
    const int64_t width = part.num_columns;
    std::vector<float> sums((width + kSumsMultiple - 1) / kSumsMultiple * kSumsMultiple);
    std::vector<Element> storage(part.has_contiguous_rows() ? 0 : kRows * width);
    float ones[kRows];
    std::fill(ones, ones + kRows, 1.0F);

    int64_t first = 0;
    for (int64_t slot = 0; slot < num_slots; ++slot) {
      // list_members() has advanced ends_[slot] from the slot's start to its end.
      const int64_t last = ends_[slot];
      Element* row = out + slot * tokens.num_columns + begin;
      if (last - first <= 1) {
        copy_row(part, last == first ? -1 : members_[first], row);
        first = last;
        continue;
      }
      const auto size = static_cast<float>(last - first);
      bool from_sums = false;
      for (; first < last; first += kRows) {
        const int64_t count = std::min(kRows, last - first);
        const Element* rows[kRows];
        for (int64_t i = 0; i < count; ++i) {
          rows[i] = static_cast<const Element*>(
              part.contiguous(members_[first + i], storage.data() + i * width));
        }
        kernels.fuse({rows, count, ones, nullptr}, width, sums.data(), from_sums, nullptr);
        from_sums = true;
      }
      kernels.divide(sums.data(), width, size, row);
      first = last;
    }
  }

  const Kernels& kernels_;
  const Matrix* features_ = nullptr;
  const DotProducts* dots_ = nullptr;
  int64_t row_bytes_ = 0;            // of one row of the features
  std::vector<int64_t> slots_;       // [N] the slot of a token's group, or -1
  std::vector<int64_t> kept_slots_;  // the slots of the kept tokens, in ascending order of token
  std::vector<const void*> kept_rows_;
  std::vector<float> kept_norms_;
  std::vector<char> kept_storage_;  // copies of kept tokens with strided columns
  std::vector<int64_t> joining_;    // the tokens that join a kept one, ascending
  std::vector<float> best_;         // their largest similarity so far, [joining tokens]
  std::vector<float> norms_;
  std::vector<int64_t> ends_;     // [R + 1]
  std::vector<int64_t> members_;  // the members of all groups, sorted by slot
};

}  // namespace clasp
