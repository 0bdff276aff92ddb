// complete_tokens and select_tokens on a GPU, by one of two designs (plan.h): from the matrix of
// all similarities of an image, in two launches per wave of images, or with one launch per step.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>

#include "binding/outputs.h"
#include "cuda/arguments.h"
#include "cuda/block_output.cuh"
#include "cuda/image_budget.h"
#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/ranking.cuh"
#include "cuda/scan.cuh"
#include "cuda/similarities.cuh"
#include "cuda/steps.cuh"
#include "cuda/tile_pairs.h"
#include "cuda/weights.cuh"
#include "cuda/workspace.h"
#include "shared/scalar.h"

namespace clasp::cuda {
namespace {

int64_t blocks_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Whether kernels may read the features in 16-byte vectors.
template <class T>
bool is_aligned(const Features<T>& features) {
  constexpr int64_t kElements = 16 / sizeof(T);
  return features.column_stride == 1 && features.dim % kElements == 0 &&
         features.token_stride % kElements == 0 && features.image_stride % kElements == 0 &&
         reinterpret_cast<uintptr_t>(features.data) % 16 == 0;
}

// Read at every call, so that one process can time one design against the other.
std::optional<Design> forced_design() {
  return design_named(std::getenv("CLASP_KERNELS_CUDA_DESIGN"));
}

// One op on one batch. The two ops differ in the source of the initial tokens and in the output of
// the picks.
struct Job {
  int64_t num_images;
  int32_t num_tokens;
  int32_t num_steps;  // the most picks of any image
  Mask valid;
  Weights weights;
  Selected<int64_t> selected;  // complete_tokens: the initial tokens
  int64_t* picks;              // complete_tokens: [B, width]
  int64_t width;               // complete_tokens
  bool selects;
  Ranking ranking;  // select_tokens
  Outputs outputs;  // select_tokens
};

template <class T>
class Launcher {
 public:
  Launcher(const Features<T>& features, const Job& job, Place place)
      : features_(features),
        job_(job),
        place_(place),
        is_aligned_(is_aligned(features)),
        stream_(place.device_index) {}

  void run() {
    const std::optional<Design> forced = forced_design();
    // Without tokens, either design only fills in the outputs.
    if (job_.num_tokens == 0) return with_matrix();
    switch (design_for(job_.num_tokens, forced, workspace_bytes())) {
      case Design::matrix:
        return with_matrix();
      case Design::steps:
        return by_steps();
    }
  }

 private:
  template <class Body>
  void in_waves(int64_t bytes_per_image, const Body& body) {
    const int64_t wave = images_per_wave(job_.num_images, bytes_per_image, workspace_bytes());
    Workspace workspace(std::max<int64_t>(1, wave * bytes_per_image), place_);
    for (int64_t first = 0; first < job_.num_images; first += wave) {
      body(workspace, first, std::min(wave, job_.num_images - first));
    }
  }

  void with_matrix() {
    const int32_t N = job_.num_tokens;
    // Without picks, no similarities are needed.
    const bool picks = job_.num_steps > 0;
    const int64_t row_stride = matrix_stride(N);
    const auto num_pairs = static_cast<unsigned>(picks ? num_tile_pairs(blocks_of(N, kTile)) : 0);
    const unsigned blocks = num_pairs + (job_.selects ? job_.ranking.num_blocks() : 0);
    in_waves(picks ? matrix_bytes(N) : 0, [&](Workspace& workspace, int64_t first, int64_t count) {
      const SimilarityBatch similarities{
          workspace.layout().add<float>(picks ? count * N * row_stride : 0), N * row_stride,
          row_stride};
      if (blocks > 0) {
        const auto kernel =
            is_aligned_ ? &similarities_kernel<T, true> : &similarities_kernel<T, false>;
        stream_.launch(kernel, grid(count * blocks), kTileThreads, features_, similarities,
                       job_.ranking, first, num_pairs, blocks);
      }
      if (N <= 128 * 8) {
        scan<128, 8>(similarities, first, count);
      } else if (N <= 256 * 16) {
        scan<256, 16>(similarities, first, count);
      } else {
        scan<512, 16>(similarities, first, count);
      }
    });
  }

  template <int kThreads, int kItems>
  void scan(const SimilarityBatch& similarities, int64_t first, int64_t count) {
    if (is_weighted()) {
      scan<kThreads, kItems, true>(similarities, first, count);
    } else {
      scan<kThreads, kItems, false>(similarities, first, count);
    }
  }

  template <int kThreads, int kItems, bool kWeighted>
  void scan(const SimilarityBatch& similarities, int64_t first, int64_t count) {
    if (job_.selects) {
      stream_.launch(&select_kernel<kThreads, kItems, kWeighted>, grid(count), kThreads,
                     similarities, job_.ranking, job_.weights, first, job_.outputs);
    } else {
      stream_.launch(&complete_kernel<kThreads, kItems, kWeighted>, grid(count), kThreads,
                     similarities, job_.num_tokens, job_.selected, job_.valid, job_.weights, first,
                     job_.picks, job_.width);
    }
  }

  void by_steps() {
    const int32_t N = job_.num_tokens;
    Layout one(nullptr);
    Progress::in(one, 1, N, job_.num_steps, is_weighted());
    const auto blocks = static_cast<unsigned>(std::max<int64_t>(1, blocks_of(N, kStepTokens)));
    in_waves(one.size(), [&](Workspace& workspace, int64_t first, int64_t count) {
      Layout layout = workspace.layout();
      const Progress progress = Progress::in(layout, count, N, job_.num_steps, is_weighted());
      const unsigned all = grid(count * blocks);
      const auto prepare = is_aligned_ ? &prepare_kernel<T, true> : &prepare_kernel<T, false>;
      stream_.launch(prepare, all, kStepThreads, features_, job_.valid, job_.ranking, job_.selects,
                     progress, first, blocks);
      if (is_weighted()) {
        stream_.launch(&weights_kernel, grid(count), kWeightThreads, job_.weights, job_.valid, N,
                       first, progress.weights);
      }
      if (job_.selects) {
        const unsigned rank_blocks = job_.ranking.num_blocks();
        stream_.launch(&rank_kernel, grid(count * rank_blocks), kRankThreads, job_.ranking, first,
                       rank_blocks);
        const Selected<int32_t> pivots{job_.ranking.pivots, job_.ranking.width, 1,
                                       job_.ranking.width};
        cover(pivots, progress, first, all, blocks);
        stream_.launch(&finish_selection_kernel, grid(count), kFinishThreads, progress,
                       job_.ranking, first, job_.outputs);
      } else {
        cover(job_.selected, progress, first, all, blocks);
        stream_.launch(&finish_picks_kernel, grid(count), kFinishThreads, progress, first,
                       job_.picks, job_.width);
      }
    });
  }

  template <class Index>
  void cover(const Selected<Index>& selected, const Progress& progress, int64_t first, unsigned all,
             unsigned blocks) {
    const auto kernel =
        is_weighted() ? cover_kernel_for<Index, true>() : cover_kernel_for<Index, false>();
    for (int32_t step = 0; step < job_.num_steps; ++step) {
      stream_.launch(kernel, all, kStepThreads, features_, selected, progress, first, blocks, step);
    }
  }

  template <class Index, bool kWeighted>
  auto cover_kernel_for() const {
    return is_aligned_ ? &cover_kernel<T, true, Index, kWeighted>
                       : &cover_kernel<T, false, Index, kWeighted>;
  }

  // Without picks, no weights are needed.
  bool is_weighted() const { return job_.weights.data != nullptr && job_.num_steps > 0; }

  static unsigned grid(int64_t blocks) {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(),
                    "features has too many images for one call");
    return static_cast<unsigned>(blocks);
  }

  Features<T> features_;
  Job job_;
  Place place_;
  bool is_aligned_;
  Stream stream_;
};

void launch(const Call& call, const Tensor& features, const Job& job) {
  if (job.num_images == 0) return;
  const Place place = Place::of(features);
  switch (scalar_of(features, "features")) {
    case Scalar::float32:
      return Launcher<float>(call.features<float>(features), job, place).run();
    case Scalar::bfloat16:
      return Launcher<Bfloat16>(call.features<Bfloat16>(features), job, place).run();
    case Scalar::float16:
      return Launcher<Float16>(call.features<Float16>(features), job, place).run();
  }
}

// features [B, N, D], selected [B, P] -> [B, num_picks]
Tensor complete_tokens(const Tensor& features, const Tensor& selected, int64_t num_picks,
                       const std::optional<Tensor>& valid, const std::optional<Tensor>& weights) {
  const DeviceGuard guard(features.get_device_index());
  const Call call(features);
  STD_TORCH_CHECK(num_picks >= 0, "num_picks must not be negative");
  Tensor picks =
      empty<2>({call.num_images, num_picks}, aoti_torch_dtype_int64(), Place::of(features));
  if (num_picks == 0) return picks;
  Job job{};
  job.num_images = call.num_images;
  job.num_tokens = call.num_tokens;
  job.num_steps = static_cast<int32_t>(std::min<int64_t>(num_picks, call.num_tokens));
  job.valid = call.mask(valid);
  job.weights = call.weights(weights);
  job.selected = call.selected(selected);
  job.picks = picks.mutable_data_ptr<int64_t>();
  job.width = num_picks;
  launch(call, features, job);
  return picks;
}

// features [B, N, D], salience [B, N] -> indices [B, num_kept], is_pivot [B, num_kept],
// counts [B]
std::tuple<Tensor, Tensor, Tensor> select_tokens(const Tensor& features, const Tensor& salience,
                                                 int64_t num_kept,
                                                 const std::optional<Tensor>& budget,
                                                 int64_t num_pivots,
                                                 const std::optional<Tensor>& pivot_counts,
                                                 const std::optional<Tensor>& valid,
                                                 const std::optional<Tensor>& weights) {
  const DeviceGuard guard(features.get_device_index());
  const Call call(features);
  const Place place = Place::of(features);
  const int64_t B = call.num_images;
  const Counts budgets = call.counts(budget, "budget", num_kept);
  const Counts shares = call.counts(pivot_counts, "pivot_counts", std::max<int64_t>(num_pivots, 1));
  // The most pivots of any image, and the fewest pivots of an image that keeps num_kept tokens.
  const int64_t width = std::min(shares.most, num_kept);
  const int64_t fewest = std::min<int64_t>(pivot_counts ? 1 : shares.most, num_kept);

  Tensor indices = empty<2>({B, num_kept}, aoti_torch_dtype_int64(), place);
  Tensor is_pivot = empty<2>({B, num_kept}, aoti_torch_dtype_bool(), place);
  Tensor counts = empty<1>({B}, aoti_torch_dtype_int64(), place);
  Tensor pivots = empty<2>({B, width}, aoti_torch_dtype_int32(), place);
  Job job{};
  job.num_images = B;
  job.num_tokens = call.num_tokens;
  // Images that keep all tokens need no steps. With a tensor of budgets, an image may keep fewer.
  const bool all_keep_all = !budget && num_kept >= call.num_tokens;
  const int64_t num_steps = std::min<int64_t>(num_kept - fewest, call.num_tokens);
  job.num_steps = all_keep_all ? 0 : static_cast<int32_t>(num_steps);
  job.valid = call.mask(valid);
  job.weights = call.weights(weights);
  job.selects = true;
  job.ranking = {
      call.salience(salience),           job.valid, budgets, shares, call.num_tokens, width,
      pivots.mutable_data_ptr<int32_t>()};
  job.outputs = {indices.mutable_data_ptr<int64_t>(), is_pivot.mutable_data_ptr<bool>(),
                 counts.mutable_data_ptr<int64_t>(), num_kept};
  launch(call, features, job);
  return {indices, is_pivot, counts};
}

}  // namespace
}  // namespace clasp::cuda

CLASP_CUDA_LIBRARY_IMPL(m) {
  m.impl("complete_tokens", CLASP_BOX(&clasp::cuda::complete_tokens));
  m.impl("select_tokens", CLASP_BOX(&clasp::cuda::select_tokens));
}
