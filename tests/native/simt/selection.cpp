// The kernels of csrc/cuda themselves, launched as select_tokens.cu launches them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/plan.h"
#include "cuda/scan.cuh"
#include "cuda/similarities.cuh"
#include "cuda/steps.cuh"
#include "simt.h"

namespace py = pybind11;

namespace {

using namespace clasp;
using namespace clasp::cuda;
using Picks = std::vector<std::vector<int64_t>>;

// Where an image starts from, and what becomes of its picks.
struct Completion {
  Selected<int64_t> selected;
  Mask valid;
  int64_t* picks;  // [B, width]
  int64_t width;
};

struct Selection {
  Ranking ranking;
  Outputs outputs;
};

struct Launch {
  std::string design;  // matrix or steps
  bool is_aligned;
  simt::Order order;
};

// [B, N, D]; bfloat16 and float16 as uint16 bit patterns.
template <class T>
Features<T> features_of(const py::array& array) {
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  if (array.ndim() != 3 || array.itemsize() != size) throw std::invalid_argument("[B, N, D]");
  return {static_cast<const T*>(array.data()),
          array.strides(0) / size,
          array.strides(1) / size,
          array.strides(2) / size,
          static_cast<int32_t>(array.shape(1)),
          static_cast<int32_t>(array.shape(2))};
}

template <class T>
class Selector {
 public:
  Selector(const Launch& launch, const py::array& features)
      : launch_(launch), features_(features_of<T>(features)), num_images_(features.shape(0)) {}

  // One of the two is empty.
  void run(const Completion& completion, const Selection& selection, bool selects,
           int32_t num_steps) {
    if (launch_.design == "matrix") return with_matrix(completion, selection, selects, num_steps);
    by_steps(completion, selection, selects, num_steps);
  }

  // [B, N, matrix_stride(N)]
  void write_matrix(float* matrix) { compare_all(matrix, num_pairs(), {}, 0); }

 private:
  template <class Kernel>
  void launch(int64_t num_blocks, int num_threads, const Kernel& kernel) {
    simt::launch(static_cast<unsigned>(num_blocks), num_threads, kernel, launch_.order);
  }

  void with_matrix(const Completion& completion, const Selection& selection, bool selects,
                   int32_t num_steps) {
    const int32_t N = features_.num_tokens;
    std::vector<float> matrix(num_images_ * matrix_bytes(N) / sizeof(float),
                              std::numeric_limits<float>::quiet_NaN());
    const unsigned pairs = num_steps > 0 ? num_pairs() : 0;
    const unsigned rank_blocks = selects ? selection.ranking.num_blocks() : 0;
    const SimilarityBatch similarities =
        compare_all(matrix.data(), pairs, selection.ranking, rank_blocks);
    launch(num_images_, 128, [&] {
      if (selects) {
        select_kernel<128, 8>(similarities, selection.ranking, 0, selection.outputs);
      } else {
        complete_kernel<128, 8>(similarities, N, completion.selected, completion.valid, 0,
                                completion.picks, completion.width);
      }
    });
  }

  unsigned num_pairs() const {
    return static_cast<unsigned>(num_tile_pairs((features_.num_tokens + kTile - 1) / kTile));
  }

  SimilarityBatch compare_all(float* matrix, unsigned pairs, const Ranking& ranking,
                              unsigned rank_blocks) {
    const int64_t stride = matrix_stride(features_.num_tokens);
    const SimilarityBatch similarities{matrix, features_.num_tokens * stride, stride};
    launch(num_images_ * (pairs + rank_blocks), kTileThreads, [&] {
      const auto kernel =
          launch_.is_aligned ? &similarities_kernel<T, true> : &similarities_kernel<T, false>;
      kernel(features_, similarities, ranking, 0, pairs, pairs + rank_blocks);
    });
    return similarities;
  }

  void by_steps(const Completion& completion, const Selection& selection, bool selects,
                int32_t num_steps) {
    const int32_t N = features_.num_tokens;
    Layout measure(nullptr);
    Progress::in(measure, num_images_, N, num_steps);
    std::vector<std::byte> memory(measure.size(), std::byte{0xFF});
    Layout layout(memory.data());
    const Progress progress = Progress::in(layout, num_images_, N, num_steps);
    const auto blocks = static_cast<unsigned>((N + kStepTokens - 1) / kStepTokens);
    launch(num_images_ * blocks, kStepThreads, [&] {
      const auto kernel = launch_.is_aligned ? &prepare_kernel<T, true> : &prepare_kernel<T, false>;
      kernel(features_, completion.valid, selection.ranking, selects, progress, 0, blocks);
    });
    const Ranking& ranking = selection.ranking;
    if (selects) {
      const unsigned rank_blocks = ranking.num_blocks();
      launch(num_images_ * rank_blocks, kRankThreads,
             [&] { rank_kernel(ranking, 0, rank_blocks); });
    }
    const Selected<int32_t> pivots{ranking.pivots, ranking.width, 1, ranking.width};
    if (selects) {
      cover(pivots, progress, blocks);
    } else {
      cover(completion.selected, progress, blocks);
    }
    launch(num_images_, kFinishThreads, [&] {
      if (selects) {
        finish_selection_kernel(progress, ranking, 0, selection.outputs);
      } else {
        finish_picks_kernel(progress, 0, completion.picks, completion.width);
      }
    });
  }

  template <class Index>
  void cover(const Selected<Index>& selected, const Progress& progress, unsigned blocks) {
    const auto kernel =
        launch_.is_aligned ? &cover_kernel<T, true, Index> : &cover_kernel<T, false, Index>;
    for (int32_t step = 0; step < progress.num_steps; ++step) {
      launch(num_images_ * blocks, kStepThreads,
             [&] { kernel(features_, selected, progress, 0, blocks, step); });
    }
  }

  Launch launch_;
  Features<T> features_;
  int64_t num_images_;
};

template <class Body>
void with_selector(const Launch& launch, const std::string& scalar, const py::array& features,
                   const Body& body) {
  if (scalar == "float32") return body(Selector<float>(launch, features));
  if (scalar == "bfloat16") return body(Selector<Bfloat16>(launch, features));
  body(Selector<Float16>(launch, features));
}

void run(const Launch& launch, const std::string& scalar, const py::array& features,
         const Completion& completion, const Selection& selection, bool selects,
         int32_t num_steps) {
  with_selector(launch, scalar, features,
                [&](auto selector) { selector.run(completion, selection, selects, num_steps); });
}

Launch launch_of(const std::string& design, bool is_aligned, const std::string& order) {
  return {design, is_aligned,
          order == "forwards"    ? simt::Order::forwards
          : order == "backwards" ? simt::Order::backwards
                                 : simt::Order::shuffled};
}

Mask mask_of(const py::array_t<uint8_t>& valid) {
  return {valid.data(), valid.strides(0), valid.strides(1)};
}

using Launched = std::tuple<std::string, bool, std::string>;

py::array_t<int64_t> simt_complete(const Launched& how, const std::string& scalar,
                                   const py::array& features, const py::array_t<int64_t>& selected,
                                   int64_t num_picks, const py::array_t<uint8_t>& valid) {
  py::array_t<int64_t> picks({features.shape(0), static_cast<py::ssize_t>(num_picks)});
  std::fill_n(picks.mutable_data(), picks.size(), -7);
  const Completion completion{
      {selected.data(), selected.strides(0) / 8, selected.strides(1) / 8, selected.shape(1)},
      mask_of(valid),
      picks.mutable_data(),
      num_picks};
  const auto steps = static_cast<int32_t>(std::min<int64_t>(num_picks, features.shape(1)));
  run(std::apply(launch_of, how), scalar, features, completion, {}, false, steps);
  return picks;
}

// budget and pivot_counts [B]
py::tuple simt_select(const Launched& how, const std::string& scalar, const py::array& features,
                      const py::array_t<float>& salience, int64_t width,
                      const py::array_t<int64_t>& budget, const py::array_t<int64_t>& pivot_counts,
                      const py::array_t<uint8_t>& valid) {
  const py::ssize_t B = features.shape(0);
  const auto N = static_cast<int32_t>(features.shape(1));
  py::array_t<int64_t> indices({B, static_cast<py::ssize_t>(width)});
  py::array_t<bool> is_pivot({B, static_cast<py::ssize_t>(width)});
  py::array_t<int64_t> counts(B);
  std::fill_n(indices.mutable_data(), indices.size(), -7);
  std::vector<int32_t> pivots(B * width, -7);
  const Ranking ranking{
      {salience.data(), Scalar::float32, salience.strides(0) / 4, salience.strides(1) / 4},
      mask_of(valid),
      {budget.data(), 1, width},
      {pivot_counts.data(), 1, width},
      N,
      width,
      pivots.data()};
  const Outputs outputs{indices.mutable_data(), is_pivot.mutable_data(), counts.mutable_data(),
                        width};
  const auto steps = static_cast<int32_t>(std::min<int64_t>(width, N));
  run(std::apply(launch_of, how), scalar, features, {{}, ranking.valid, nullptr, 0},
      {ranking, outputs}, true, steps);
  return py::make_tuple(indices, is_pivot, counts);
}

// [B, N, N], and more columns that no one writes.
py::array_t<float> simt_similarities(const Launched& how, const std::string& scalar,
                                     const py::array& features) {
  const py::ssize_t N = features.shape(1);
  py::array_t<float> matrix({features.shape(0), N, matrix_stride(static_cast<int32_t>(N))});
  std::fill_n(matrix.mutable_data(), matrix.size(), std::numeric_limits<float>::quiet_NaN());
  with_selector(std::apply(launch_of, how), scalar, features,
                [&](auto selector) { selector.write_matrix(matrix.mutable_data()); });
  return matrix;
}

}  // namespace

#ifdef SIMT_RACES
// Threads of two warps, one of which writes what the other one reads, after a barrier or not.
void exchange(bool waits) {
  simt::launch(1, 64, [&] {
    __shared__ int value;
    if (threadIdx.x == 0) value = 1;
    if (waits) __syncthreads();
    if (threadIdx.x == 32 && value == 2) simt::fail("a value that nobody wrote");
  });
}
#endif

PYBIND11_MODULE(CLASP_MODULE_NAME, m) {
#ifdef SIMT_RACES
  m.def("exchange", &exchange);
  m.def("take_races", &simt::races::take_reports);
#endif
  m.def("complete", &simt_complete);
  m.def("select", &simt_select);
  m.def("similarities", &simt_similarities);
}
