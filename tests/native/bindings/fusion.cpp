// Layer fusion.
#include "algorithms/fusion.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

// Fuses the tokens of `layers`, each [N, D], into `out`, in the ranges [bounds[i], bounds[i + 1]),
// as separate threads would.
void fuse(const std::string& instruction_set, const std::vector<py::array>& layers,
          const std::string& scalar, const std::vector<float>& weights,
          const std::string& normalization, const std::vector<int64_t>& bounds, py::array& out) {
  std::vector<clasp::Matrix> matrices;
  for (const py::array& layer : layers) matrices.push_back(matrix(layer, scalar));
  if (bounds.empty() || out.nbytes() < (bounds.back() - bounds[0]) * matrices[0].num_columns *
                                           clasp::scalar_size(matrices[0].scalar)) {
    throw std::invalid_argument("out is too small");
  }
  const auto kind = normalization == "l2"    ? clasp::Normalization::l2
                    : normalization == "rms" ? clasp::Normalization::rms
                                             : clasp::Normalization::none;
  clasp::Fusion fusion(kernels_of(instruction_set));
  fusion.set_image(matrices, weights, kind);
  auto* rows = static_cast<char*>(out.mutable_data());
  const int64_t row_bytes = matrices[0].num_columns * out.itemsize();
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    fusion.run(bounds[i], bounds[i + 1], rows + (bounds[i] - bounds[0]) * row_bytes);
  }
}

}  // namespace

void bind_fusion(py::module_& m) {
  m.def("fuse", &fuse);
}
