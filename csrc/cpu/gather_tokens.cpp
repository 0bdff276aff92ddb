#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "algorithms/gathering.h"
#include "binding/failures.h"
#include "binding/outputs.h"
#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "shared/scalar.h"

namespace clasp::cpu {
namespace {

// tokens [B, N, D], indices [B, R] -> [B, R, D]
Tensor gather_tokens(const Tensor& tokens, const Tensor& indices) {
  const Batch images(tokens, "tokens");
  const int64_t B = tokens.size(0);
  const int64_t D = tokens.size(2);
  const Indices chosen(indices, "indices", B, tokens.size(1));
  const int64_t R = chosen.width();

  Tensor gathered = empty<3>({B, R, D}, tokens);
  auto* out = static_cast<char*>(gathered.mutable_data_ptr());
  const int64_t row_bytes = D * scalar_size(scalar_of(tokens, "tokens"));
  parallel_for(B * R, grain_of_bytes(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / R;
      copy_row(images.image(b), chosen(b, row - b * R), out + row * row_bytes);
    }
  });
  return gathered;
}

}  // namespace
}  // namespace clasp::cpu

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("gather_tokens", CLASP_BOX(&clasp::cpu::gather_tokens));
}
