#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "algorithms/matrix.h"
#include "algorithms/pivots.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace clasp::cpu {
namespace {

// Smallest number of elements per thread. Below it, waking a thread costs more than it saves.
constexpr int64_t kGrain = 16384;

// salience [B, N] -> [B, num_pivots]
Tensor select_pivots(const Tensor& salience, int64_t num_pivots, const std::optional<Tensor>& k,
                     const std::optional<Tensor>& valid) {
  STD_TORCH_CHECK(salience.is_cpu() && salience.dim() == 2, "salience must be [B, N] on CPU");
  const int64_t B = salience.size(0);
  const int64_t N = salience.size(1);
  STD_TORCH_CHECK(N <= std::numeric_limits<int32_t>::max(), "salience has too many tokens");
  const Matrix scores{salience.const_data_ptr(), scalar_of(salience, "salience"), B, N,
                      salience.stride(0),        N == 1 ? 1 : salience.stride(1)};
  const PerImage counts(k, "k", B, num_pivots);
  const ValidMask mask(valid, "valid", B, N);
  const Kernels& kernels = best_kernels();

  Tensor pivots = empty<2>({B, num_pivots}, aoti_torch_dtype_int64());
  auto* out = pivots.mutable_data_ptr<int64_t>();
  const int64_t grain = std::max<int64_t>(kGrain / std::max<int64_t>(N, 1), 1);
  parallel_for(B, grain, [&](int64_t begin, int64_t end) {
    Pivots worker(kernels);
    std::vector<float> buffer(scores.loads_in_place() ? 0 : N);
    for (int64_t b = begin; b < end; ++b) {
      int64_t* row = out + b * num_pivots;
      const float* values = scores.load(b, kernels, buffer.data());
      const int64_t found = worker.run(values, N, counts[b], mask.image(b), row);
      std::fill(row + found, row + num_pivots, -1);
    }
  });
  return pivots;
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("select_pivots", CLASP_BOX(&clasp::cpu::select_pivots));
}
