// The decisions that the host makes for the CUDA kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "arguments.h"
#include "cuda/plan.h"
#include "cuda/tile_pairs.h"

void bind_cuda_plan(py::module_& m) {
  using namespace clasp::cuda;
  m.attr("cuda_workspace") = kWorkspaceBytes;
  m.def("cuda_design", [](int32_t num_tokens, const char* forced) {
    const Design design = design_for(num_tokens, design_named(forced), kWorkspaceBytes);
    return design == Design::matrix ? "matrix" : "steps";
  });
  m.def("cuda_matrix_bytes", &matrix_bytes);
  m.def("cuda_images_per_wave", &images_per_wave);
  m.def("tile_pairs", [](int64_t num_blocks) {
    std::vector<std::pair<int32_t, int32_t>> pairs;
    for (int64_t index = 0; index < clasp::num_tile_pairs(num_blocks); ++index) {
      const clasp::TilePair pair = clasp::tile_pair(index);
      pairs.emplace_back(pair.row, pair.column);
    }
    return pairs;
  });
}
