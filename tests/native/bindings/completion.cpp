// Completion and the two-stage selection.
#include "algorithms/completion.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "algorithms/selection.h"
#include "arguments.h"

namespace {

auto flag(const std::vector<bool>& flags) {
  return [&flags](int64_t n) { return static_cast<bool>(flags[n]); };
}

// Processes several images with one set of buffers, as a thread of the CPU kernel does.
class Worker {
 public:
  explicit Worker(const std::string& instruction_set)
      : completion_(kernels_of(instruction_set)), selection_(kernels_of(instruction_set)) {}

  std::vector<int64_t> complete(const py::array& features, const std::string& scalar,
                                const std::vector<int64_t>& selected, int64_t num_tokens,
                                const std::vector<bool>& valid, int64_t pieces,
                                const std::optional<std::vector<float>>& weights) {
    std::vector<int64_t> picks(num_tokens);
    picks.resize(completion_.run(matrix(features, scalar), selected.data(),
                                 static_cast<int64_t>(selected.size()), num_tokens,
                                 weights ? weights->data() : nullptr, flag(valid),
                                 in_pieces(pieces), picks.data()));
    return picks;
  }

  std::tuple<std::vector<int64_t>, std::vector<bool>> select(
      const py::array& features, const std::string& scalar, const std::vector<float>& salience,
      int64_t budget, int64_t num_pivots, const std::vector<bool>& valid, int64_t pieces,
      const std::optional<std::vector<float>>& weights) {
    std::vector<int64_t> indices(budget);
    const auto is_pivot = std::make_unique<bool[]>(budget);
    const int64_t count =
        selection_.run(matrix(features, scalar), salience.data(), budget, num_pivots,
                       weights ? weights->data() : nullptr, flag(valid), in_pieces(pieces),
                       indices.data(), is_pivot.get());
    indices.resize(count);
    return {indices, std::vector<bool>(is_pivot.get(), is_pivot.get() + count)};
  }

 private:
  clasp::Completion completion_;
  clasp::Selection selection_;
};

}  // namespace

void bind_completion(py::module_& m) {
  py::class_<Worker>(m, "Worker")
      .def(py::init<std::string>())
      .def("complete", &Worker::complete, py::arg("features"), py::arg("scalar"),
           py::arg("selected"), py::arg("num_tokens"), py::arg("valid"), py::arg("pieces"),
           py::arg("weights") = py::none())
      .def("select", &Worker::select, py::arg("features"), py::arg("scalar"), py::arg("salience"),
           py::arg("budget"), py::arg("num_pivots"), py::arg("valid"), py::arg("pieces"),
           py::arg("weights") = py::none());
}
