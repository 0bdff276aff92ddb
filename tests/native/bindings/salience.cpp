// The attention that keys receive.
#include "algorithms/salience.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"

namespace {

py::array_t<float> exponentials(const std::string& instruction_set,
                                const py::array_t<float>& values) {
  // A heap block of exactly this size, so that a sanitizer detects accesses beyond it.
  std::vector<float> copy(values.data(), values.data() + values.shape(0));
  kernels_of(instruction_set).exponentials(values.shape(0), copy.data());
  py::array_t<float> result(values.shape(0));
  std::copy(copy.begin(), copy.end(), result.mutable_data());
  return result;
}

std::vector<float> normalized_weights(std::vector<float> weights) {
  clasp::normalize_weights(weights.data(), static_cast<int64_t>(weights.size()));
  return weights;
}

// Processes several heads with one set of buffers, as a thread of the CPU kernel does.
class SalienceWorker {
 public:
  explicit SalienceWorker(const std::string& instruction_set)
      : salience_(kernels_of(instruction_set)) {}

  // queries [group, T, d], keys [S, d] -> the values added to each column, and the number of
  // leading keys seen by a row whose softmax is undefined.
  std::tuple<py::array_t<float>, int64_t> run(const py::array& queries, const py::array& keys,
                                              const std::string& scalar, float scale, bool causal,
                                              int64_t start, int64_t stop,
                                              const std::vector<float>& weights,
                                              const std::vector<bool>& valid, int64_t pieces) {
    const clasp::Scalar type = scalar_named(scalar);
    const int64_t size = clasp::scalar_size(type);
    if (queries.ndim() != 3 || queries.itemsize() != size) {
      throw std::invalid_argument("queries must be [group, T, d] of " + scalar);
    }
    const clasp::Matrix first{queries.data(),
                              type,
                              queries.shape(1),
                              queries.shape(2),
                              queries.strides(1) / size,
                              queries.strides(2) / size};
    const clasp::AttentionHead head{first,
                                    queries.shape(0),
                                    queries.strides(0) / size,
                                    matrix(keys, scalar),
                                    scale,
                                    causal,
                                    start,
                                    stop};
    std::vector<float> columns(stop - start);
    const auto mask = std::make_unique<bool[]>(valid.size());
    std::copy(valid.begin(), valid.end(), mask.get());
    const int64_t without =
        salience_.run(head, weights.data(), valid.empty() ? nullptr : mask.get(), in_pieces(pieces),
                      columns.data());
    py::array_t<float> result(stop - start);
    std::copy(columns.begin(), columns.end(), result.mutable_data());
    return {result, without};
  }

 private:
  clasp::Salience salience_;
};

}  // namespace

void bind_salience(py::module_& m) {
  m.def("exponentials", &exponentials);
  m.def("normalized_weights", &normalized_weights);
  py::class_<SalienceWorker>(m, "SalienceWorker")
      .def(py::init<std::string>())
      .def("run", &SalienceWorker::run);
}
