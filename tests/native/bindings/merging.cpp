// Merging, and copying of rows.
#include "algorithms/merging.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "algorithms/gathering.h"
#include "arguments.h"

namespace {

// Processes several images with one set of buffers, as a thread of the CPU kernel does.
class Merger {
 public:
  explicit Merger(const std::string& instruction_set) : merging_(kernels_of(instruction_set)) {}

  void merge(const py::array& tokens, const std::string& scalar, const py::array& features,
             const std::string& features_scalar, const std::vector<int64_t>& indices,
             const std::vector<bool>& valid, int64_t pieces, py::array& out) {
    const auto num_slots = static_cast<int64_t>(indices.size());
    if (out.nbytes() != num_slots * tokens.shape(1) * tokens.itemsize()) {
      throw std::invalid_argument("out has the wrong size");
    }
    merging_.run(
        matrix(tokens, scalar), matrix(features, features_scalar), num_slots,
        [&](int64_t slot) { return indices[slot]; },
        [&](int64_t n) { return static_cast<bool>(valid[n]); }, in_pieces(pieces),
        out.mutable_data());
  }

 private:
  clasp::Merging merging_;
};

void copy_row(const py::array& rows, const std::string& scalar, int64_t index, py::array& out) {
  if (out.nbytes() != rows.shape(1) * rows.itemsize()) {
    throw std::invalid_argument("out has the wrong size");
  }
  clasp::copy_row(matrix(rows, scalar), index, out.mutable_data());
}

}  // namespace

void bind_merging(py::module_& m) {
  py::class_<Merger>(m, "Merger").def(py::init<std::string>()).def("merge", &Merger::merge);
  m.def("copy_row", &copy_row);
}
