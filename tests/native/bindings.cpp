// The torch-free core as a Python module, for tests that reach it directly.
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

#include "core/completion.h"
#include "core/dispatch.h"
#include "core/matrix.h"
#include "core/order.h"
#include "core/selection.h"

namespace py = pybind11;

namespace {

const clasp::Kernels& kernels_of(const std::string& name) {
  for (const clasp::InstructionSet& set : clasp::instruction_sets()) {
    if (name == set.name) return *set.kernels;
  }
  throw std::invalid_argument("this machine has no " + name);
}

// A view: float32 as such, bfloat16 and float16 as uint16 bit patterns.
clasp::Matrix matrix(const py::array& rows, const std::string& scalar) {
  const auto type = scalar == "bfloat16"  ? clasp::Scalar::bfloat16
                    : scalar == "float16" ? clasp::Scalar::float16
                                          : clasp::Scalar::float32;
  if (rows.ndim() != 2 || rows.itemsize() != clasp::scalar_size(type)) {
    throw std::invalid_argument("features must be [N, D] of " + scalar);
  }
  return {rows.data(),
          type,
          rows.shape(0),
          rows.shape(1),
          rows.strides(0) / rows.itemsize(),
          rows.strides(1) / rows.itemsize()};
}

// Stands in for a thread pool: `pieces` ranges, the last one first.
auto in_pieces(int64_t pieces) {
  return [pieces](int64_t count, const auto& body) {
    const int64_t size = (count + pieces - 1) / pieces;
    for (int64_t piece = pieces - 1; piece >= 0; --piece) {
      const int64_t begin = std::min(piece * size, count);
      const int64_t end = std::min(begin + size, count);
      if (begin < end) body(begin, end);
    }
  };
}

auto flag(const std::vector<bool>& flags) {
  return [&flags](int64_t n) { return static_cast<bool>(flags[n]); };
}

// Serves several images in turn from one set of buffers, as a thread of the CPU kernel does.
class Worker {
 public:
  explicit Worker(const std::string& instruction_set)
      : completion_(kernels_of(instruction_set)), selection_(kernels_of(instruction_set)) {}

  std::vector<int64_t> complete(const py::array& features, const std::string& scalar,
                                const std::vector<int64_t>& selected, int64_t num_tokens,
                                const std::vector<bool>& valid, int64_t pieces) {
    std::vector<int64_t> picks(num_tokens);
    picks.resize(completion_.run(matrix(features, scalar), selected.data(),
                                 static_cast<int64_t>(selected.size()), num_tokens, flag(valid),
                                 in_pieces(pieces), picks.data()));
    return picks;
  }

  std::tuple<std::vector<int64_t>, std::vector<bool>> select(
      const py::array& features, const std::string& scalar, const std::vector<float>& salience,
      int64_t budget, int64_t num_pivots, const std::vector<bool>& valid, int64_t pieces) {
    std::vector<int64_t> indices(budget);
    const auto is_pivot = std::make_unique<bool[]>(budget);
    const int64_t count = selection_.run(
        matrix(features, scalar), [&](int64_t n) { return salience[n]; }, budget, num_pivots,
        flag(valid), in_pieces(pieces), indices.data(), is_pivot.get());
    indices.resize(count);
    return {indices, std::vector<bool>(is_pivot.get(), is_pivot.get() + count)};
  }

 private:
  clasp::Completion completion_;
  clasp::Selection selection_;
};

std::vector<const float*> row_pointers(const py::array_t<float>& rows) {
  std::vector<const float*> pointers;
  for (py::ssize_t r = 0; r < rows.shape(0); ++r) pointers.push_back(rows.data(r, 0));
  return pointers;
}

py::array_t<float> tile(const std::string& instruction_set, const py::array_t<float>& tokens,
                        const py::array_t<float>& rows) {
  const std::vector<const float*> t = row_pointers(tokens);
  const std::vector<const float*> r = row_pointers(rows);
  py::array_t<float> dots({t.size(), r.size()});
  kernels_of(instruction_set)
      .tile(t.data(), static_cast<int64_t>(t.size()), r.data(), static_cast<int64_t>(r.size()),
            tokens.shape(1), dots.mutable_data());
  return dots;
}

py::array_t<float> squares(const std::string& instruction_set, const py::array_t<float>& tokens) {
  const std::vector<const float*> t = row_pointers(tokens);
  py::array_t<float> result(tokens.shape(0));
  kernels_of(instruction_set)
      .squares(t.data(), static_cast<int64_t>(t.size()), tokens.shape(1), result.mutable_data());
  return result;
}

py::array_t<float> widen(const std::string& instruction_set, const py::array_t<uint16_t>& halves,
                         const std::string& scalar) {
  const clasp::Kernels& kernels = kernels_of(instruction_set);
  const auto convert = scalar == "bfloat16" ? kernels.widen_bfloat16 : kernels.widen_float16;
  py::array_t<float> result(halves.shape(0));
  convert(halves.data(), halves.shape(0), result.mutable_data());
  return result;
}

// For the test that a sanitizer which ought to be there is.
int read_past_the_end(const std::vector<int>& values) {
  const auto copy = std::make_unique<int[]>(values.size());
  std::copy(values.begin(), values.end(), copy.get());
  return const_cast<const volatile int*>(copy.get())[values.size()];
}

}  // namespace

PYBIND11_MODULE(CLASP_MODULE_NAME, m) {
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const clasp::InstructionSet& set : clasp::instruction_sets()) names.emplace_back(set.name);
    return names;
  });
  m.def("smallest_first", &clasp::smallest_first);
  m.def("largest_first", &clasp::largest_first);
  m.def("key_index", &clasp::key_index);
  m.attr("RETIRED") = clasp::kRetired;
  m.def("tile", &tile);
  m.def("squares", &squares);
  m.def("widen", &widen);
  m.def("read_past_the_end", &read_past_the_end);
  py::class_<Worker>(m, "Worker")
      .def(py::init<std::string>())
      .def("complete", &Worker::complete)
      .def("select", &Worker::select);
}
