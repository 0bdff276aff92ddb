// The torch-free core as a Python module, with one bind_* function per subject.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "simd/dispatch.h"

void bind_arithmetic(py::module_& m);
void bind_completion(py::module_& m);
void bind_covering(py::module_& m);
void bind_cuda_plan(py::module_& m);
void bind_fusion(py::module_& m);
void bind_lateness(py::module_& m);
void bind_merging(py::module_& m);
void bind_pivots(py::module_& m);
void bind_salience(py::module_& m);

const clasp::Kernels& kernels_of(const std::string& instruction_set) {
  for (const clasp::InstructionSet& set : clasp::instruction_sets()) {
    if (instruction_set == set.name) return *set.kernels;
  }
  throw std::invalid_argument("this machine has no " + instruction_set);
}

namespace {

// Used to test that the sanitizer is active.
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
  m.def("read_past_the_end", &read_past_the_end);
  bind_arithmetic(m);
  bind_completion(m);
  bind_covering(m);
  bind_cuda_plan(m);
  bind_fusion(m);
  bind_lateness(m);
  bind_merging(m);
  bind_pivots(m);
  bind_salience(m);
}
