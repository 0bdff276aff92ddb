#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "algorithms/covering.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/parallel.h"

namespace clasp::cpu {
namespace {

// features [B, N, D], selected [B, P], counts [B], weights and preference [B, N] -> [B, num_picks]
Tensor cover_tokens(const Tensor& features, const Tensor& selected, int64_t num_picks,
                    const std::optional<Tensor>& counts, const std::optional<Tensor>& weights,
                    const std::optional<Tensor>& preference, const std::optional<Tensor>& valid) {
  const Batch images(features, "features");
  const int64_t B = features.size(0);
  const int64_t N = features.size(1);
  const Indices chosen(selected, "selected", B, N);
  const PerImage limits(counts, "counts", B, num_picks);
  const Weights given(weights, "weights", B, N);
  const Weights preferred(preference, "preference", B, N);
  const ValidMask mask(valid, "valid", B, N);

  Tensor picks = empty<2>({B, num_picks}, aoti_torch_dtype_int64());
  auto* out = picks.mutable_data_ptr<int64_t>();
  for_each_image<Covering>(B, [&](int64_t b, Covering& covering, const auto& parallel) {
    const std::vector<int64_t> present = chosen.present(b);
    int64_t* row = out + b * num_picks;
    std::vector<float> weight_buffer, preference_buffer;
    const int64_t count =
        covering.run(images.image(b), present.data(), static_cast<int64_t>(present.size()),
                     limits[b], given.image(b, weight_buffer),
                     preferred.image(b, preference_buffer), mask.image(b), parallel, row);
    std::fill(row + count, row + num_picks, -1);
  });
  return picks;
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("cover_tokens", CLASP_BOX(&clasp::cpu::cover_tokens));
}
