// The pivots of one image.
#include "algorithms/pivots.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

// Processes several images with one set of buffers, as a thread of the CPU kernel does.
class PivotWorker {
 public:
  explicit PivotWorker(const std::string& instruction_set) : pivots_(kernels_of(instruction_set)) {}

  std::vector<int64_t> run(const py::array_t<float>& salience, int64_t num_pivots,
                           const std::vector<bool>& valid) {
    std::vector<int64_t> pivots(num_pivots);
    pivots.resize(pivots_.run(
        salience.data(), salience.shape(0), num_pivots,
        [&](int64_t n) { return static_cast<bool>(valid[n]); }, pivots.data()));
    return pivots;
  }

 private:
  clasp::Pivots pivots_;
};

}  // namespace

void bind_pivots(py::module_& m) {
  py::class_<PivotWorker>(m, "PivotWorker")
      .def(py::init<std::string>())
      .def("run", &PivotWorker::run);
}
