// Attention that each key receives, computed without storing the attention matrix.
//
// The unit of work is one key head of one image and all the query rows that read it, processed in
// blocks of rows whose stored values fit into the cache. For each block of keys, the logits become
// exp(logit - the block's maximum), stored along with their sum. The row's maximum and sum over all
// blocks then turn a stored value into a probability by one factor per row and block. Each logit
// thus costs one exp, and the salience of a key is a dot product over rows.
//
// Blocks of keys may be computed in any order and by any thread. The order of summation depends on
// the shapes only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "algorithms/matrix.h"
#include "simd/kernels.h"

namespace clasp {

// Contiguous floats, aligned to a cache line for full-width vector loads.
class Floats {
 public:
  void resize(int64_t size) { lines_.resize((size + kPerLine - 1) / kPerLine); }
  float* data() { return lines_.empty() ? nullptr : lines_.front().values; }
  const float* data() const { return lines_.empty() ? nullptr : lines_.front().values; }

 private:
  static constexpr int64_t kPerLine = 16;
  struct alignas(64) Line {
    float values[kPerLine];
  };
  std::vector<Line> lines_;
};

// The keys of one head and the queries that read them.
struct AttentionHead {
  Matrix queries;  // [T, d], first of `group` query heads
  int64_t group;
  int64_t group_stride;  // in elements
  Matrix keys;           // [S, d]
  float scale;
  bool causal;
  int64_t start;  // [start, stop) are the keys that are reported
  int64_t stop;
};

// Normalizes the weights of the rows to sum to 1. Divides by the largest weight first, because the
// sum of large weights would overflow.
inline void normalize_weights(float* weights, int64_t count) {
  float largest = 0.0F;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, weights[i]);
  if (!(largest > 0.0F)) return;
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += weights[i] /= largest;
  for (int64_t i = 0; i < count; ++i) weights[i] /= static_cast<float>(total);
}

// Processes one head at a time; the buffers are reused between heads.
class Salience {
 public:
  explicit Salience(const Kernels& kernels) : kernels_(kernels) {}

  // Adds the salience of the keys [start, stop), summed over the group, to `columns`. Returns the
  // number of leading keys seen by a row whose softmax is undefined. The caller overwrites the
  // salience of every valid key among them with NaN. `weights` are the normalized weights of the
  // rows, [T]. `valid` is [S], or null if all keys are valid. parallel(count, body) runs
  // body(begin, end) over ranges that cover 0..count.
  template <class Parallel>
  int64_t run(const AttentionHead& head, const float* weights, const bool* valid,
              const Parallel& parallel, float* columns) {
    head_ = &head;
    weights_ = weights;
    counted_.clear();
    for (int64_t t = 0; t < head.queries.num_rows; ++t) {
      if (weights[t] != 0.0F) counted_.push_back(t);
    }
    const int64_t num_rows = static_cast<int64_t>(counted_.size()) * head.group;
    const int64_t num_vectors = (num_rows + kernels_.lanes - 1) / kernels_.lanes;
    num_without_ = 0;
    if (2 * num_rows <= kernels_.lanes) {
      if (num_rows > 0) attend(0, num_rows, 0, valid, parallel, columns);
      return num_without_;
    }
    const int64_t num_blocks = (num_vectors + max_vectors() - 1) / max_vectors();
    for (int64_t i = 0; i < num_blocks; ++i) {
      const int64_t begin = num_vectors * i / num_blocks;
      const int64_t end = num_vectors * (i + 1) / num_blocks;
      const int64_t first = begin * kernels_.lanes;
      attend(first, std::min(num_rows, end * kernels_.lanes) - first, end - begin, valid, parallel,
             columns);
    }
    return num_without_;
  }

 private:
  // Prefetch distance in keys. Rows are read side by side, a pattern that hardware prefetching does
  // not recognize. Prefetching halves the time of one query row over keys in main memory.
  static constexpr int64_t kAhead = 48;
  // Most floats stored for a block of rows: 512 KiB, half of a typical L2 cache.
  static constexpr int64_t kMaxStored = 131072;

  // Every block of rows reads all keys. Blocks of a single vector read the keys so often that it
  // costs more than exceeding kMaxStored: 1.3 times the time of two vectors at 6048 float32 keys.
  static constexpr int64_t kLeastVectors = 2;

  // The number of query row vectors in a block. It depends on the number of all keys, not of the
  // reported keys, because it determines the order of summation.
  int64_t max_vectors() const {
    const int64_t per_vector = kernels_.lanes * std::max<int64_t>(head_->keys.num_rows, 1);
    return std::clamp<int64_t>(kMaxStored / per_vector, kLeastVectors, kMaxRowVectors);
  }

  // Rows are ordered by position first, so that neighbors see nearly the same keys.
  int64_t position(int64_t row) const { return counted_[row / head_->group]; }

  // Returns how many leading keys the row may see.
  int64_t limit(int64_t row) const {
    const int64_t num_keys = head_->keys.num_rows;
    if (!head_->causal) return num_keys;
    return std::max<int64_t>(num_keys - head_->queries.num_rows + position(row) + 1, 0);
  }

  // Processes rows first..first + num_rows - 1 as num_vectors vectors, or with the keys across the
  // lanes if num_vectors is 0.
  template <class Parallel>
  void attend(int64_t first, int64_t num_rows, int64_t num_vectors, const bool* valid,
              const Parallel& parallel, float* columns) {
    num_vectors_ = num_vectors;
    width_ = num_vectors ? num_vectors * kernels_.lanes : num_rows;
    limits_.resize(width_);
    // Spare lanes repeat the last row, with a factor of 0.
    for (int64_t r = 0; r < width_; ++r) limits_[r] = limit(first + std::min(r, num_rows - 1));
    load_queries(first, num_rows);

    const int64_t visible = limits_[width_ - 1];
    const int64_t num_blocks = (visible + kBlockKeys - 1) / kBlockKeys;
    first_reported_ = head_->start / kBlockKeys;
    const int64_t num_reported = std::max<int64_t>(
        0, (std::min(head_->stop, visible) + kBlockKeys - 1) / kBlockKeys - first_reported_);
    stored_.resize(num_reported * kBlockKeys * width_);
    maxima_.resize(num_blocks * width_);
    sums_.resize(num_blocks * width_);
    parallel(num_blocks, [&](int64_t begin, int64_t end) {
      Floats keys;
      keys.resize(kKeysAtOnce * head_->keys.num_columns);
      Floats unreported;
      if (num_reported < num_blocks) unreported.resize(kBlockKeys * width_);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t slot = block - first_reported_;
        const bool reported = slot >= 0 && slot < num_reported;
        attend_block(block, valid, keys.data(),
                     reported ? stored_.data() + slot * kBlockKeys * width_ : unreported.data());
      }
    });
    find_factors(first, num_rows, num_blocks, valid);
    parallel(num_reported, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) add_columns(slot, visible, columns);
    });
  }

  bool in_pairs() const {
    return num_vectors_ > 0 && head_->keys.scalar == Scalar::bfloat16 &&
           kernels_.row_logits_bfloat16;
  }

  // Returns one query of the block as contiguous elements of its own type.
  const void* query(int64_t row) {
    Matrix queries = head_->queries;
    queries.data = static_cast<const char*>(queries.data) +
                   row % head_->group * head_->group_stride * scalar_size(queries.scalar);
    return queries.contiguous(position(row), row_.data());
  }

  void load_queries(int64_t first, int64_t num_rows) {
    const int64_t dim = head_->queries.num_columns;
    const int64_t size = scalar_size(head_->queries.scalar);
    row_.resize(dim);
    queries_.resize(width_ * (dim + 1));
    for (int64_t r = 0; r < width_; ++r) {
      const void* row = query(first + std::min(r, num_rows - 1));
      if (num_vectors_ == 0) {
        std::memcpy(reinterpret_cast<char*>(queries_.data()) + r * dim * size, row, dim * size);
      } else if (in_pairs()) {
        const auto* halves = static_cast<const Bfloat16*>(row);
        auto* pairs = reinterpret_cast<uint32_t*>(queries_.data());
        for (int64_t i = 0; i < dim; i += 2) {
          const uint32_t second = i + 1 < dim ? halves[i + 1].bits : 0;
          pairs[i / 2 * width_ + r] = second << 16 | halves[i].bits;
        }
      } else {
        for (int64_t i = 0; i < dim; ++i) {
          queries_.data()[i * width_ + r] = head_->queries.element(row, i);
        }
      }
    }
  }

  void attend_block(int64_t block, const bool* valid, float* keys, float* stored) {
    const int64_t begin = block * kBlockKeys;
    const int64_t num_keys = std::min(kBlockKeys, limits_[width_ - 1] - begin);
    float* maxima = maxima_.data() + block * width_;
    float* sums = sums_.data() + block * width_;
    const bool* seen = valid ? valid + begin : nullptr;
    if (seen && !std::memchr(seen, true, num_keys)) {
      std::fill(stored, stored + kBlockKeys * width_, 0.0F);
      std::fill(maxima, maxima + width_, kLeast);
      std::fill(sums, sums + width_, 0.0F);
      return;
    }
    find_logits(begin, num_keys, keys, stored);
    if (seen && std::memchr(seen, false, num_keys)) {
      for (int64_t k = 0; k < num_keys; ++k) {
        if (!seen[k]) mask(stored, k, width_);
      }
    }
    for (int64_t k = std::max<int64_t>(0, limits_[0] - begin); k < num_keys; ++k) {
      const auto first = std::upper_bound(limits_.begin(), limits_.end(), begin + k);
      mask(stored, k, first - limits_.begin());
    }
    if (!num_vectors_) {
      for (int64_t k = num_keys; k < kBlockKeys; ++k) mask(stored, k, width_);
    }
    if (num_vectors_) {
      kernels_.row_softmax(num_vectors_, num_keys, stored, maxima, sums);
    } else {
      kernels_.key_softmax(width_, stored, maxima, sums);
    }
  }

  // Hides key k of a block from the first num_rows rows.
  void mask(float* logits, int64_t k, int64_t num_rows) const {
    const int64_t row_stride = num_vectors_ ? 1 : kBlockKeys;
    const int64_t key_stride = num_vectors_ ? width_ : 1;
    for (int64_t r = 0; r < num_rows; ++r) {
      logits[r * row_stride + k * key_stride] = -std::numeric_limits<float>::infinity();
    }
  }

  // Fills rows[0 .. kKeysAtOnce) with keys begin..begin + count - 1, the last one repeated, and the
  // next kKeysAtOnce entries with the keys to prefetch, kAhead keys later.
  void find_rows(int64_t begin, int64_t count, float* buffer, const void** rows) const {
    const Matrix& keys = head_->keys;
    if (keys.column_stride == 1) {
      const auto* row = static_cast<const char*>(keys.row(begin));
      const int64_t stride = keys.row_stride * scalar_size(keys.scalar);
      const int64_t last = count - 1;
      for (int64_t i = 0; i < kKeysAtOnce; ++i) rows[i] = row + std::min(i, last) * stride;
      for (int64_t i = 0; i < kKeysAtOnce; ++i) {
        rows[kKeysAtOnce + i] = row + std::min(i + kAhead, keys.num_rows - 1 - begin) * stride;
      }
      return;
    }
    for (int64_t i = 0; i < kKeysAtOnce; ++i) {
      rows[i] =
          i < count ? keys.contiguous(begin + i, buffer + i * keys.num_columns) : rows[count - 1];
      rows[kKeysAtOnce + i] = rows[i];  // copies in `buffer` need no prefetch
    }
  }

  void find_logits(int64_t begin, int64_t num_keys, float* buffer, float* logits) const {
    const Matrix& keys = head_->keys;
    const int64_t dim = keys.num_columns;
    for (int64_t k = 0; k < num_keys; k += kKeysAtOnce) {
      const int64_t count = std::min(kKeysAtOnce, num_keys - k);
      if (num_vectors_ > 0 && !in_pairs()) {
        const float* rows[kKeysAtOnce];
        for (int64_t i = 0; i < count; ++i) {
          rows[i] = keys.load(begin + k + i, kernels_, buffer + i * dim);
        }
        kernels_.row_logits(queries_.data(), num_vectors_, rows, count, dim, head_->scale,
                            logits + k * width_);
        continue;
      }
      const void* rows[2 * kKeysAtOnce];
      find_rows(begin + k, count, buffer, rows);
      if (num_vectors_ > 0) {
        kernels_.row_logits_bfloat16(reinterpret_cast<const uint32_t*>(queries_.data()),
                                     num_vectors_, rows, count, dim, head_->scale,
                                     logits + k * width_);
      } else {
        kernels_.key_logits[static_cast<int>(keys.scalar)](queries_.data(), width_, rows, dim,
                                                           head_->scale, logits + k);
      }
    }
  }

  // Turns maxima_ into the factors of the stored values: the weight of the row times exp(the
  // block's maximum - the row's maximum) / the row's sum.
  void find_factors(int64_t first, int64_t num_rows, int64_t num_blocks, const bool* valid) {
    float* maxima = maxima_.data();
    const float* sums = sums_.data();
    for (int64_t r = 0; r < width_; ++r) {
      float most = kLeast;
      for (int64_t b = 0; b < num_blocks; ++b) most = std::max(most, maxima[b * width_ + r]);
      for (int64_t b = 0; b < num_blocks; ++b) maxima[b * width_ + r] -= most;
    }
    kernels_.exponentials(num_blocks * width_, maxima);
    for (int64_t r = 0; r < width_; ++r) {
      float total = 0.0F;
      for (int64_t b = 0; b < num_blocks; ++b)
        total += maxima[b * width_ + r] * sums[b * width_ + r];
      float share = 0.0F;
      if (total > 0.0F) {
        if (r < num_rows) share = weights_[position(first + r)] / total;
      } else if (sees_a_key(limits_[r], valid)) {
        num_without_ = std::max(num_without_, limits_[r]);
      }
      for (int64_t b = 0; b < num_blocks; ++b) {
        float& factor = maxima[b * width_ + r];
        factor = share > 0.0F ? factor * share : 0.0F;  // factor may be NaN here
      }
    }
  }

  // Called for a row without a positive sum. Such a row either sees no valid key and adds nothing,
  // or has a logit of NaN or inf, or only logits of -inf, so that its softmax is undefined.
  static bool sees_a_key(int64_t limit, const bool* valid) {
    return limit > 0 && (!valid || std::memchr(valid, true, limit));
  }

  void add_columns(int64_t slot, int64_t visible, float* columns) {
    const int64_t block = first_reported_ + slot;
    const int64_t begin = block * kBlockKeys;
    const int64_t end = std::min(begin + kBlockKeys, visible);
    const float* stored = stored_.data() + slot * kBlockKeys * width_;
    const float* factors = maxima_.data() + block * width_;
    float found[kBlockKeys];
    if (num_vectors_) {
      kernels_.row_columns(stored, factors, num_vectors_, end - begin, found);
    } else {
      kernels_.key_columns(stored, factors, width_, found);
    }
    const int64_t first = std::max(begin, head_->start);
    const int64_t last = std::min(end, head_->stop);
    for (int64_t s = first; s < last; ++s) columns[s - head_->start] += found[s - begin];
  }

  const Kernels& kernels_;
  const AttentionHead* head_ = nullptr;
  const float* weights_ = nullptr;
  std::vector<int64_t> counted_;  // positions of the rows with a weight other than 0
  int64_t num_without_ = 0;

  // State of one block of rows:
  int64_t num_vectors_ = 0;
  int64_t width_ = 0;
  int64_t first_reported_ = 0;
  std::vector<int64_t> limits_;  // ascending
  Floats row_;
  Floats queries_;  // [d, width], or [width, d] with the keys across the lanes
  Floats stored_;   // [reported blocks, kBlockKeys, width], or [.., width, kBlockKeys]
  Floats maxima_;   // [blocks, width]
  Floats sums_;     // [blocks, width]
};

}  // namespace clasp
