#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "core/completion.h"
#include "core/dispatch.h"
#include "core/matrix.h"
#include "core/selection.h"

// Python has checked the arguments and says what is wrong with them in its own words; what is
// checked here is what keeps a call that goes around it from reading out of bounds.

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

clasp::Scalar scalar_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return clasp::Scalar::float32;
    case ScalarType::BFloat16:
      return clasp::Scalar::bfloat16;
    case ScalarType::Half:
      return clasp::Scalar::float16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
  return clasp::Scalar::float32;
}

void check_matrix(const Tensor& tensor, const char* name, ScalarType type, int64_t num_images,
                  int64_t width) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == type, name,
                  " has the wrong device or dtype");
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == num_images && tensor.size(1) == width,
                  name, " has the wrong shape");
}

// One value an image, from a [B] int64 tensor if there is one, cut to 0..maximum.
class PerImage {
 public:
  PerImage(const std::optional<Tensor>& values, const char* name, int64_t num_images,
           int64_t maximum)
      : maximum_(maximum) {
    STD_TORCH_CHECK(maximum >= 0, name, " must not be negative");
    if (!values) return;
    STD_TORCH_CHECK(values->is_cpu() && values->scalar_type() == ScalarType::Long &&
                        values->dim() == 1 && values->size(0) == num_images,
                    name, " must be an int64 CPU tensor with one value per image");
    data_ = values->const_data_ptr<int64_t>();
    stride_ = values->stride(0);
  }

  int64_t operator[](int64_t image) const {
    return data_ ? std::clamp<int64_t>(data_[image * stride_], 0, maximum_) : maximum_;
  }

 private:
  int64_t maximum_;
  const int64_t* data_ = nullptr;
  int64_t stride_ = 0;
};

class ValidMask {
 public:
  ValidMask(const std::optional<Tensor>& valid, int64_t num_images, int64_t num_tokens) {
    if (!valid) return;
    check_matrix(*valid, "valid", ScalarType::Bool, num_images, num_tokens);
    data_ = valid->const_data_ptr<bool>();
    image_stride_ = valid->stride(0);
    token_stride_ = valid->stride(1);
  }

  auto image(int64_t index) const {
    const bool* row = data_ ? data_ + index * image_stride_ : nullptr;
    return [row, stride = token_stride_](int64_t n) { return !row || row[n * stride]; };
  }

 private:
  const bool* data_ = nullptr;
  int64_t image_stride_ = 0;
  int64_t token_stride_ = 0;
};

// [B, N, D]
class Features {
 public:
  explicit Features(const Tensor& features) : scalar_(scalar_of(features, "features")) {
    STD_TORCH_CHECK(features.is_cpu() && features.dim() == 3, "features must be [B, N, D] on CPU");
    num_tokens_ = features.size(1);
    STD_TORCH_CHECK(num_tokens_ <= std::numeric_limits<int32_t>::max(),
                    "features has too many tokens");
    dim_ = features.size(2);
    data_ = static_cast<const char*>(features.const_data_ptr());
    image_stride_ = features.stride(0);
    token_stride_ = features.stride(1);
    column_stride_ = features.stride(2);
  }

  clasp::Matrix image(int64_t index) const {
    return {data_ + index * image_stride_ * clasp::scalar_size(scalar_), scalar_, num_tokens_, dim_,
            token_stride_,
            // The stride of a dimension of size one is anybody's guess.
            dim_ == 1 ? 1 : column_stride_};
  }

 private:
  clasp::Scalar scalar_;
  const char* data_;
  int64_t num_tokens_;
  int64_t dim_;
  int64_t image_stride_;
  int64_t token_stride_;
  int64_t column_stride_;
};

constexpr auto kSerial = [](int64_t count, const auto& body) { body(0, count); };
// At 32 tokens a thread's share outweighs waking it.
constexpr auto kParallel = [](int64_t count, const auto& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/32, body);
};

// Runs body(image, worker, parallel) for every image: the images in parallel if there are several,
// otherwise with the threads inside the image. A Worker, with its buffers, serves one thread.
template <class Worker, class Body>
void for_each_image(int64_t num_images, const Body& body) {
  if (num_images == 1) {
    Worker worker(clasp::best_kernels());
    body(0, worker, kParallel);
    return;
  }
  torch::stable::parallel_for(0, num_images, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    Worker worker(clasp::best_kernels());
    for (int64_t b = begin; b < end; ++b) body(b, worker, kSerial);
  });
}

// features [B, N, D], selected [B, P] -> [B, num_tokens]
Tensor complete_tokens(const Tensor& features, const Tensor& selected, int64_t num_tokens,
                       const std::optional<Tensor>& valid) {
  const Features images(features);
  const int64_t B = features.size(0);
  const int64_t N = features.size(1);
  STD_TORCH_CHECK(num_tokens >= 0, "num_tokens must not be negative");
  STD_TORCH_CHECK(selected.dim() == 2, "selected must be [B, P]");
  const int64_t P = selected.size(1);
  check_matrix(selected, "selected", ScalarType::Long, B, P);
  const auto* selected_data = selected.const_data_ptr<int64_t>();
  const int64_t image_stride = selected.stride(0);
  const int64_t slot_stride = selected.stride(1);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t p = 0; p < P; ++p) {
      STD_TORCH_CHECK(selected_data[b * image_stride + p * slot_stride] < N,
                      "selected holds an index that is out of range");
    }
  }
  const ValidMask mask(valid, B, N);

  Tensor picks = torch::stable::new_empty(features, {B, num_tokens}, ScalarType::Long);
  auto* out = picks.mutable_data_ptr<int64_t>();
  for_each_image<clasp::Completion>(
      B, [&](int64_t b, clasp::Completion& completion, const auto& parallel) {
        std::vector<int64_t> present;
        for (int64_t p = 0; p < P; ++p) {
          const int64_t index = selected_data[b * image_stride + p * slot_stride];
          if (index >= 0) present.push_back(index);
        }
        int64_t* row = out + b * num_tokens;
        const int64_t count =
            completion.run(images.image(b), present.data(), static_cast<int64_t>(present.size()),
                           num_tokens, mask.image(b), parallel, row);
        std::fill(row + count, row + num_tokens, -1);
      });
  return picks;
}

// features [B, N, D], salience [B, N] -> indices [B, num_tokens], is_pivot [B, num_tokens],
// counts [B]
std::tuple<Tensor, Tensor, Tensor> select_tokens(const Tensor& features, const Tensor& salience,
                                                 int64_t num_tokens,
                                                 const std::optional<Tensor>& budget,
                                                 int64_t num_pivots,
                                                 const std::optional<Tensor>& pivot_counts,
                                                 const std::optional<Tensor>& valid) {
  const Features images(features);
  const int64_t B = features.size(0);
  const int64_t N = features.size(1);
  check_matrix(salience, "salience", salience.scalar_type(), B, N);
  const clasp::Matrix scores{
      salience.const_data_ptr(), scalar_of(salience, "salience"), B, N, salience.stride(0),
      salience.stride(1)};
  const PerImage budgets(budget, "budget", B, num_tokens);
  const PerImage pivots(pivot_counts, "pivot_counts", B, num_pivots);
  const ValidMask mask(valid, B, N);

  Tensor indices = torch::stable::new_empty(features, {B, num_tokens}, ScalarType::Long);
  Tensor is_pivot = torch::stable::new_empty(features, {B, num_tokens}, ScalarType::Bool);
  Tensor counts = torch::stable::new_empty(features, {B}, ScalarType::Long);
  auto* indices_out = indices.mutable_data_ptr<int64_t>();
  auto* is_pivot_out = is_pivot.mutable_data_ptr<bool>();
  auto* counts_out = counts.mutable_data_ptr<int64_t>();
  for_each_image<clasp::Selection>(
      B, [&](int64_t b, clasp::Selection& selection, const auto& parallel) {
        const auto score = [&scores, row = scores.row(b)](int64_t n) {
          return scores.element(row, n * scores.column_stride);
        };
        int64_t* index_row = indices_out + b * num_tokens;
        bool* pivot_row = is_pivot_out + b * num_tokens;
        const int64_t count = selection.run(images.image(b), score, budgets[b], pivots[b],
                                            mask.image(b), parallel, index_row, pivot_row);
        std::fill(index_row + count, index_row + num_tokens, -1);
        std::fill(pivot_row + count, pivot_row + num_tokens, false);
        counts_out[b] = count;
      });
  return {indices, is_pivot, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(clasp_kernels, CPU, m) {
  m.impl("complete_tokens", TORCH_BOX(&complete_tokens));
  m.impl("select_tokens", TORCH_BOX(&select_tokens));
}
