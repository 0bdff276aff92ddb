#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "algorithms/completion.h"
#include "algorithms/matrix.h"
#include "algorithms/selection.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace clasp::cpu {
namespace {

// features [B, N, D], selected [B, P], weights [B, N] -> [B, num_picks]
Tensor complete_tokens(const Tensor& features, const Tensor& selected, int64_t num_picks,
                       const std::optional<Tensor>& valid, const std::optional<Tensor>& weights) {
  const Batch images(features, "features");
  const int64_t B = features.size(0);
  const int64_t N = features.size(1);
  STD_TORCH_CHECK(num_picks >= 0, "num_picks must not be negative");
  const Indices chosen(selected, "selected", B, N);
  const Weights given(weights, "weights", B, N);
  const ValidMask mask(valid, "valid", B, N);

  Tensor picks = empty<2>({B, num_picks}, aoti_torch_dtype_int64());
  auto* out = picks.mutable_data_ptr<int64_t>();
  for_each_image<Completion>(B, [&](int64_t b, Completion& completion, const auto& parallel) {
    const std::vector<int64_t> present = chosen.present(b);
    int64_t* row = out + b * num_picks;
    std::vector<float> buffer;
    const int64_t count =
        completion.run(images.image(b), present.data(), static_cast<int64_t>(present.size()),
                       num_picks, given.image(b, buffer), mask.image(b), parallel, row);
    std::fill(row + count, row + num_picks, -1);
  });
  return picks;
}

// features [B, N, D], salience [B, N], weights [B, N] -> indices [B, num_kept], is_pivot [B,
// num_kept], counts [B]
std::tuple<Tensor, Tensor, Tensor> select_tokens(const Tensor& features, const Tensor& salience,
                                                 int64_t num_kept,
                                                 const std::optional<Tensor>& budget,
                                                 int64_t num_pivots,
                                                 const std::optional<Tensor>& pivot_counts,
                                                 const std::optional<Tensor>& valid,
                                                 const std::optional<Tensor>& weights) {
  const Batch images(features, "features");
  const int64_t B = features.size(0);
  const int64_t N = features.size(1);
  check_matrix(salience, "salience", salience.scalar_type(), B, N);
  const Matrix scores{salience.const_data_ptr(), scalar_of(salience, "salience"), B, N,
                      salience.stride(0),        N == 1 ? 1 : salience.stride(1)};
  const PerImage budgets(budget, "budget", B, num_kept);
  const PerImage pivots(pivot_counts, "pivot_counts", B, num_pivots);
  const Weights given(weights, "weights", B, N);
  const ValidMask mask(valid, "valid", B, N);

  Tensor indices = empty<2>({B, num_kept}, aoti_torch_dtype_int64());
  Tensor is_pivot = empty<2>({B, num_kept}, aoti_torch_dtype_bool());
  Tensor counts = empty<1>({B}, aoti_torch_dtype_int64());
  auto* indices_out = indices.mutable_data_ptr<int64_t>();
  auto* is_pivot_out = is_pivot.mutable_data_ptr<bool>();
  auto* counts_out = counts.mutable_data_ptr<int64_t>();
  for_each_image<Selection>(B, [&](int64_t b, Selection& selection, const auto& parallel) {
    std::vector<float> buffer(scores.loads_in_place() ? 0 : N);
    const float* values = scores.load(b, best_kernels(), buffer.data());
    int64_t* index_row = indices_out + b * num_kept;
    bool* pivot_row = is_pivot_out + b * num_kept;
    std::vector<float> weight_buffer;
    const int64_t count =
        selection.run(images.image(b), values, budgets[b], pivots[b], given.image(b, weight_buffer),
                      mask.image(b), parallel, index_row, pivot_row);
    std::fill(index_row + count, index_row + num_kept, -1);
    std::fill(pivot_row + count, pivot_row + num_kept, false);
    counts_out[b] = count;
  });
  return {indices, is_pivot, counts};
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("complete_tokens", CLASP_BOX(&clasp::cpu::complete_tokens));
  m.impl("select_tokens", CLASP_BOX(&clasp::cpu::select_tokens));
}
