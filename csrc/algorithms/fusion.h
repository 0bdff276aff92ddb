// Weighted sums of the layers of one image, token by token, in one pass over memory.
//
// Hardware prefetching follows a few streams well but not two dozen: reading 24 layers at once took
// twice as long as reading a few at a time. Layers are therefore read in groups. All groups process
// one batch of tokens before the next batch, and the batch is small enough for its float32 sums to
// stay in the cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "algorithms/matrix.h"
#include "shared/scalar.h"
#include "simd/kernels.h"

namespace clasp {

enum class Normalization { none, l2, rms };

// Runs on one thread; processes one image at a time.
class Fusion {
 public:
  explicit Fusion(const Kernels& kernels) : kernels_(kernels) {}

  // Sets the image's layers, all of one shape and scalar type, and one weight per layer. Layers of
  // weight 0 are never read.
  void set_image(const std::vector<Matrix>& layers, const std::vector<float>& weights,
                 Normalization normalization) {
    num_columns_ = layers[0].num_columns;
    scalar_ = layers[0].scalar;
    normalization_ = normalization;
    layers_.clear();
    weights_.clear();
    for (size_t l = 0; l < layers.size(); ++l) {
      if (weights[l] == 0) continue;
      layers_.push_back(layers[l]);
      weights_.push_back(weights[l]);
    }
  }

  // Fuses the tokens of [begin, end) into consecutive rows from `out` on.
  void run(int64_t begin, int64_t end, void* out) {
    switch (scalar_) {
      case Scalar::float32:
        return run(kernels_.fuse_float32, begin, end, static_cast<float*>(out));
      case Scalar::bfloat16:
        return run(kernels_.fuse_bfloat16, begin, end, static_cast<Bfloat16*>(out));
      case Scalar::float16:
        return run(kernels_.fuse_float16, begin, end, static_cast<Float16*>(out));
    }
  }

 private:
  static constexpr int64_t kGroup = 8;
  // 256 KiB of float32 sums. The rows read meanwhile take at most half as much of the L2 cache.
  static constexpr int64_t kSums = 65536;

  template <class Element>
  void run(const FuseKernels<Element>& kernels, int64_t begin, int64_t end, Element* out) {
    const auto num_layers = static_cast<int64_t>(layers_.size());
    const int64_t num_groups = std::max<int64_t>(1, (num_layers + kGroup - 1) / kGroup);
    const int64_t width = (num_columns_ + kSumsMultiple - 1) / kSumsMultiple * kSumsMultiple;
    const int64_t num_tokens =
        num_groups == 1 ? end - begin
                        : std::clamp<int64_t>(kSums / std::max<int64_t>(width, 1), 1, end - begin);
    if (num_groups > 1) reserve(num_tokens * width);
    if (!have_contiguous_rows()) copies_.resize(kGroup * num_columns_ * sizeof(Element));

    for (int64_t first = begin; first < end; first += num_tokens) {
      const int64_t last = std::min(first + num_tokens, end);
      for (int64_t group = 0; group < num_groups; ++group) {
        const int64_t layer = group * num_layers / num_groups;
        const int64_t count = (group + 1) * num_layers / num_groups - layer;
        const bool is_last = group + 1 == num_groups;
        for (int64_t token = first; token < last; ++token) {
          const Element* rows[kGroup] = {};
          float scales[kGroup];
          for (int64_t i = 0; i < count; ++i) {
            rows[i] = row<Element>(layers_[layer + i], token, i);
            if (normalization_ != Normalization::none) {
              scales[i] = scale(kernels.sum_of_squares(rows[i], num_columns_));
            }
          }
          const bool has_scales = normalization_ != Normalization::none;
          float* sums = num_groups > 1 ? sums_.get() + (token - first) * width : nullptr;
          kernels.fuse({rows, count, weights_.data() + layer, has_scales ? scales : nullptr},
                       num_columns_, sums, group > 0,
                       is_last ? out + (token - begin) * num_columns_ : nullptr);
        }
      }
    }
  }

  bool have_contiguous_rows() const {
    return std::all_of(layers_.begin(), layers_.end(),
                       [](const Matrix& layer) { return layer.has_contiguous_rows(); });
  }

  // Returns a token's row with contiguous columns. Copies it to slot `slot` of copies_ if strided.
  template <class Element>
  const Element* row(const Matrix& layer, int64_t token, int64_t slot) {
    char* copy = copies_.data() + slot * num_columns_ * static_cast<int64_t>(sizeof(Element));
    return static_cast<const Element*>(layer.contiguous(token, copy));
  }

  // Returns the factor that normalizes a token's row. Multiplying by a reciprocal saves one
  // division per element. The reciprocal cannot overflow or become subnormal, because the square
  // root of a positive float lies between 2^-75 and 2^64.
  float scale(float square) const {
    if (normalization_ == Normalization::rms) {
      return 1.0F / std::sqrt(square / static_cast<float>(num_columns_) + 1e-6F);
    }
    const float norm = std::sqrt(square);
    return norm > 0.0F ? 1.0F / norm : 1.0F;
  }

  void reserve(int64_t num_sums) {
    if (num_sums <= num_sums_) return;
    sums_.reset(new float[num_sums]);
    num_sums_ = num_sums;
  }

  const Kernels& kernels_;
  Normalization normalization_ = Normalization::none;
  Scalar scalar_ = Scalar::float32;
  int64_t num_columns_ = 0;
  std::vector<Matrix> layers_;  // the layers with a weight other than 0, and their weights
  std::vector<float> weights_;
  std::unique_ptr<float[]> sums_;
  int64_t num_sums_ = 0;
  std::vector<char> copies_;  // rows with strided columns
};

}  // namespace clasp
