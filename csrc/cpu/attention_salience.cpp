#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "algorithms/matrix.h"
#include "algorithms/salience.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace clasp::cpu {
namespace {

// A batch of heads of rows, [B, H, rows, d].
class Heads {
 public:
  Heads(const Tensor& tensor, const char* name) : scalar_(scalar_of(tensor, name)) {
    STD_TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 4, name, " must be [B, H, rows, d] on CPU");
    data_ = static_cast<const char*>(tensor.const_data_ptr());
    for (int i = 0; i < 4; ++i) {
      sizes_[i] = tensor.size(i);
      strides_[i] = tensor.stride(i);
    }
  }

  int64_t size(int dim) const { return sizes_[dim]; }
  int64_t head_stride() const { return strides_[1]; }

  Matrix head(int64_t image, int64_t index) const {
    const int64_t offset = image * strides_[0] + index * strides_[1];
    return {data_ + offset * scalar_size(scalar_), scalar_, sizes_[2], sizes_[3], strides_[2],
            // torch does not define the stride of a dimension of size 1.
            sizes_[3] == 1 ? 1 : strides_[3]};
  }

 private:
  Scalar scalar_;
  const char* data_;
  int64_t sizes_[4];
  int64_t strides_[4];
};

// The normalized weights of all query rows, [B, T].
std::vector<float> row_shares(const std::optional<Tensor>& weights, int64_t B, int64_t T) {
  std::vector<float> shares(B * T, 1.0F);
  if (weights) {
    check_matrix(*weights, "query_weights", weights->scalar_type(), B, T);
    const Matrix rows{
        weights->const_data_ptr(), scalar_of(*weights, "query_weights"), B, T, weights->stride(0),
        weights->stride(1)};
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        shares[b * T + t] = rows.element(rows.row(b), t * rows.column_stride);
      }
    }
  }
  for (int64_t b = 0; b < B; ++b) normalize_weights(shares.data() + b * T, T);
  return shares;
}

// The valid keys, as a contiguous row per image.
class Masks {
 public:
  Masks(const std::optional<Tensor>& valid, int64_t B, int64_t S) : num_keys_(S) {
    if (!valid) return;
    const ValidMask mask(valid, "key_valid", B, S);
    copy_ = std::make_unique<bool[]>(B * S);
    for (int64_t b = 0; b < B; ++b) {
      const auto row = mask.image(b);
      for (int64_t s = 0; s < S; ++s) copy_[b * S + s] = row(s);
    }
  }

  // Null if all keys are valid.
  const bool* image(int64_t index) const {
    return copy_ ? copy_.get() + index * num_keys_ : nullptr;
  }

 private:
  int64_t num_keys_;
  std::unique_ptr<bool[]> copy_;
};

// Heads are summed in at most this many fixed groups (slots), and the groups in order. Several
// threads can then work on one image, and the order of summation does not depend on their number.
constexpr int64_t kMaxSlots = 32;
// The most units (image, slot) processed together, which bounds the memory.
constexpr int64_t kMaxUnits = 128;

// query [B, Hq, T, d], key [B, Hkv, S, d], key_valid [B, S], query_weights [B, T]
// -> [B, stop - start]
Tensor attention_salience(const Tensor& query, const Tensor& key, double scale, bool causal,
                          const std::optional<Tensor>& key_valid,
                          const std::optional<Tensor>& query_weights, int64_t start, int64_t stop) {
  const KeepSubnormals keep;
  const Heads queries(query, "query");
  const Heads keys(key, "key");
  const int64_t B = queries.size(0);
  const int64_t T = queries.size(2);
  const int64_t S = keys.size(2);
  const int64_t num_heads = keys.size(1);
  STD_TORCH_CHECK(key.scalar_type() == query.scalar_type(), "key must have query's dtype");
  STD_TORCH_CHECK(keys.size(0) == B && keys.size(3) == queries.size(3), "key has the wrong shape");
  STD_TORCH_CHECK(num_heads > 0 && queries.size(1) % num_heads == 0,
                  "the heads of query must be a multiple of the heads of key");
  STD_TORCH_CHECK(0 <= start && start <= stop && stop <= S, "start and stop must be inside 0..S");
  const int64_t group = queries.size(1) / num_heads;
  const Masks masks(key_valid, B, S);
  const std::vector<float> shares = row_shares(query_weights, B, T);

  const int64_t N = stop - start;
  Tensor salience = empty<2>({B, N}, aoti_torch_dtype_float32());
  auto* out = salience.mutable_data_ptr<float>();
  const int64_t num_slots = std::min(num_heads, kMaxSlots);
  const int64_t num_together = std::min(B, std::max<int64_t>(1, kMaxUnits / num_slots));
  std::vector<float> columns(num_together * num_slots * N);
  std::vector<int64_t> without(num_together * num_slots);

  const Kernels& kernels = best_kernels();
  for (int64_t first = 0; first < B; first += num_together) {
    const int64_t num_images = std::min(num_together, B - first);
    std::fill(columns.begin(), columns.end(), 0.0F);
    std::fill(without.begin(), without.end(), 0);
    const auto run_unit = [&](int64_t unit, Salience& worker, const auto& parallel) {
      const int64_t b = first + unit / num_slots;
      const int64_t slot = unit % num_slots;
      for (int64_t h = num_heads * slot / num_slots; h < num_heads * (slot + 1) / num_slots; ++h) {
        const AttentionHead head{queries.head(b, h * group),
                                 group,
                                 queries.head_stride(),
                                 keys.head(b, h),
                                 static_cast<float>(scale),
                                 causal,
                                 start,
                                 stop};
        without[unit] =
            std::max(without[unit], worker.run(head, shares.data() + b * T, masks.image(b),
                                               parallel, columns.data() + unit * N));
      }
    };
    const int64_t num_units = num_images * num_slots;
    const auto num_threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t rounds = (num_units + num_threads - 1) / num_threads;
    // If whole units would leave threads idle, the threads share the keys of one unit at a time.
    if (5 * num_units < 4 * rounds * num_threads) {
      Salience worker(kernels);
      for (int64_t unit = 0; unit < num_units; ++unit) run_unit(unit, worker, kParallel);
    } else {
      parallel_for(num_units, /*grain=*/1, [&](int64_t begin, int64_t end) {
        Salience worker(kernels);
        for (int64_t unit = begin; unit < end; ++unit) run_unit(unit, worker, kSerial);
      });
    }
    for (int64_t i = 0; i < num_images; ++i) {
      const float* sums = columns.data() + i * num_slots * N;
      float* row = out + (first + i) * N;
      std::copy(sums, sums + N, row);
      for (int64_t slot = 1; slot < num_slots; ++slot) {
        for (int64_t n = 0; n < N; ++n) row[n] += sums[slot * N + n];
      }
      for (int64_t n = 0; n < N; ++n) row[n] /= static_cast<float>(queries.size(1));
      const int64_t* counts = without.data() + i * num_slots;
      const int64_t num_without = std::min(stop, *std::max_element(counts, counts + num_slots));
      const bool* valid = masks.image(first + i);
      for (int64_t s = start; s < num_without; ++s) {
        if (!valid || valid[s]) row[s - start] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
  return salience;
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("attention_salience", CLASP_BOX(&clasp::cpu::attention_salience));
}
