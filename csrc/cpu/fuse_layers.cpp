#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "algorithms/fusion.h"
#include "algorithms/matrix.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"
#include "shared/scalar.h"

namespace clasp::cpu {
namespace {

Normalization normalization_named(const std::string& name) {
  if (name == "none") return Normalization::none;
  if (name == "l2") return Normalization::l2;
  STD_TORCH_CHECK(name == "rms", "normalize must be none, l2 or rms, got ", name);
  return Normalization::rms;
}

// hidden_states: L x [B, N, D], weights [C, L], category_ids [B] -> [B, N, D]
Tensor fuse_layers(const std::vector<Tensor>& hidden_states, const Tensor& weights,
                   const std::optional<Tensor>& category_ids, const std::string& normalize) {
  STD_TORCH_CHECK(!hidden_states.empty(), "hidden_states must hold at least one layer");
  const auto L = static_cast<int64_t>(hidden_states.size());
  const Tensor& first = hidden_states[0];
  std::vector<Batch> layers;
  for (const Tensor& states : hidden_states) {
    layers.emplace_back(states, "hidden_states");
    STD_TORCH_CHECK(states.scalar_type() == first.scalar_type() &&
                        std::equal(states.sizes().begin(), states.sizes().end(),
                                   first.sizes().begin(), first.sizes().end()),
                    "hidden_states must be of one dtype and shape");
  }
  const int64_t B = first.size(0);
  const int64_t N = first.size(1);
  const int64_t D = first.size(2);

  STD_TORCH_CHECK(weights.dim() == 2, "weights must be [C, L]");
  const int64_t C = weights.size(0);
  check_matrix(weights, "weights", ScalarType::Float, C, L);
  const auto* weight_data = weights.const_data_ptr<float>();
  std::vector<int64_t> categories(B, 0);
  if (category_ids) {
    STD_TORCH_CHECK(category_ids->is_cpu() && category_ids->scalar_type() == ScalarType::Long &&
                        category_ids->dim() == 1 && category_ids->size(0) == B,
                    "category_ids must be an int64 CPU tensor with one value per image");
    const auto* ids = category_ids->const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b) {
      categories[b] = ids[b * category_ids->stride(0)];
      STD_TORCH_CHECK(categories[b] >= 0 && categories[b] < C, "category_ids must lie in 0..",
                      C - 1, " (the rows of weights), got ", categories[b]);
    }
  } else {
    STD_TORCH_CHECK(C == 1, "weights must have one row without category_ids, got ", C);
  }
  const Normalization normalization = normalization_named(normalize);

  Tensor fused = empty<3>({B, N, D}, first);
  auto* out = static_cast<char*>(fused.mutable_data_ptr());
  const int64_t row_bytes = D * scalar_size(scalar_of(first, "hidden_states"));
  const Kernels& kernels = best_kernels();
  parallel_for(B * N, grain_of_bytes(L * row_bytes), [&](int64_t begin, int64_t end) {
    Fusion fusion(kernels);
    std::vector<Matrix> image(L);
    std::vector<float> image_weights(L);
    while (begin < end) {
      const int64_t b = begin / N;
      const int64_t token = begin - b * N;
      const int64_t count = std::min(N - token, end - begin);
      for (int64_t l = 0; l < L; ++l) {
        image[l] = layers[l].image(b);
        image_weights[l] = weight_data[categories[b] * weights.stride(0) + l * weights.stride(1)];
      }
      fusion.set_image(image, image_weights, normalization);
      fusion.run(token, token + count, out + begin * row_bytes);
      begin += count;
    }
  });
  return fused;
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("fuse_layers", CLASP_BOX(&clasp::cpu::fuse_layers));
}
