#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

#include "algorithms/merging.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "shared/scalar.h"

namespace clasp::cpu {
namespace {

// tokens [B, N, D], features [B, N, F], indices [B, R] -> [B, R, D]
Tensor merge_tokens(const Tensor& tokens, const Tensor& features, const Tensor& indices,
                    const std::optional<Tensor>& valid) {
  const Batch token_images(tokens, "tokens");
  const Batch feature_images(features, "features");
  const int64_t B = tokens.size(0);
  const int64_t N = tokens.size(1);
  const int64_t D = tokens.size(2);
  STD_TORCH_CHECK(features.size(0) == B && features.size(1) == N, "features must be [", B, ", ", N,
                  ", F], with the batch size and number of tokens of `tokens`");
  const Indices kept(indices, "indices", B, N);
  const int64_t R = kept.width();
  const ValidMask mask(valid, "valid", B, N);

  Tensor merged = empty<3>({B, R, D}, tokens);
  auto* out = static_cast<char*>(merged.mutable_data_ptr());
  const int64_t row_bytes = D * scalar_size(scalar_of(tokens, "tokens"));
  for_each_image<Merging>(B, [&](int64_t b, Merging& merging, const auto& parallel) {
    merging.run(
        token_images.image(b), feature_images.image(b), R,
        [&](int64_t slot) { return kept(b, slot); }, mask.image(b), parallel,
        out + b * R * row_bytes);
  });
  return merged;
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("merge_tokens", CLASP_BOX(&clasp::cpu::merge_tokens));
}
