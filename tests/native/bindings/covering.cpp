// Facility location.
#include "algorithms/covering.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"

namespace {

// Processes several images with one set of buffers, as a thread of the CPU kernel does.
class Coverer {
 public:
  Coverer(const std::string& instruction_set, int64_t workspace_bytes)
      : covering_(kernels_of(instruction_set), workspace_bytes) {}

  std::vector<int64_t> cover(const py::array& features, const std::string& scalar,
                             const std::vector<int64_t>& selected, int64_t num_tokens,
                             const std::vector<bool>& valid, int64_t pieces,
                             const std::optional<std::vector<float>>& weights,
                             const std::optional<std::vector<float>>& preference) {
    std::vector<int64_t> picks(num_tokens);
    picks.resize(covering_.run(
        matrix(features, scalar), selected.data(), static_cast<int64_t>(selected.size()),
        num_tokens, weights ? weights->data() : nullptr, preference ? preference->data() : nullptr,
        [&](int64_t n) { return static_cast<bool>(valid[n]); }, in_pieces(pieces), picks.data()));
    return picks;
  }

 private:
  clasp::Covering covering_;
};

}  // namespace

void bind_covering(py::module_& m) {
  py::class_<Coverer>(m, "Coverer")
      .def(py::init<std::string, int64_t>(), py::arg("instruction_set"),
           py::arg("workspace_bytes") = clasp::Covering::kWorkspaceBytes)
      .def("cover", &Coverer::cover, py::arg("features"), py::arg("scalar"), py::arg("selected"),
           py::arg("num_tokens"), py::arg("valid"), py::arg("pieces") = 1,
           py::arg("weights") = py::none(), py::arg("preference") = py::none());
}
