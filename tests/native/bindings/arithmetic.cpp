// Arithmetic that depends on the instruction set, and the ranking of candidates.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "shared/order.h"
#include "shared/scalar.h"

namespace {

std::vector<const void*> row_pointers(const clasp::Matrix& rows) {
  std::vector<const void*> pointers;
  for (int64_t r = 0; r < rows.num_rows; ++r) pointers.push_back(rows.row(r));
  return pointers;
}

// `later` are the tokens of the next tile, which are prefetched.
py::array_t<float> tile(const std::string& instruction_set, const std::string& scalar,
                        const py::array& tokens, const py::array& rows,
                        const std::optional<py::array>& later) {
  const std::vector<const void*> t = row_pointers(matrix(tokens, scalar));
  const std::vector<const void*> r = row_pointers(matrix(rows, scalar));
  std::vector<const void*> ahead;
  if (later) ahead = row_pointers(matrix(*later, scalar));
  py::array_t<float> dots({t.size(), r.size()});
  kernels_of(instruction_set)
      .dots(scalar_named(scalar))
      .tile(t.data(), static_cast<int64_t>(t.size()), r.data(), static_cast<int64_t>(r.size()),
            tokens.shape(1), ahead.data(), static_cast<int64_t>(ahead.size()), dots.mutable_data());
  return dots;
}

py::array_t<float> squares(const std::string& instruction_set, const std::string& scalar,
                           const py::array& tokens) {
  const std::vector<const void*> t = row_pointers(matrix(tokens, scalar));
  py::array_t<float> result(tokens.shape(0));
  kernels_of(instruction_set)
      .dots(scalar_named(scalar))
      .squares(t.data(), static_cast<int64_t>(t.size()), tokens.shape(1), result.mutable_data());
  return result;
}

// `halves` are bit patterns.
py::array_t<float> widen(const std::string& instruction_set, const py::array_t<uint16_t>& halves,
                         const std::string& scalar) {
  const clasp::Kernels& kernels = kernels_of(instruction_set);
  py::array_t<float> result(halves.shape(0));
  const void* source = halves.data();
  if (scalar_named(scalar) == clasp::Scalar::bfloat16) {
    kernels.widen_bfloat16(static_cast<const clasp::Bfloat16*>(source), halves.shape(0),
                           result.mutable_data());
  } else {
    kernels.widen_float16(static_cast<const clasp::Float16*>(source), halves.shape(0),
                          result.mutable_data());
  }
  return result;
}

template <class Half>
py::array_t<uint16_t> narrowed(const clasp::FuseKernels<Half>& kernels,
                               const py::array_t<float>& values) {
  py::array_t<uint16_t> result(values.shape(0));
  for (py::ssize_t i = 0; i < values.shape(0); ++i) {
    // sums may be in any order, so all of them get the same value.
    float sums[clasp::kSumsMultiple];
    Half halves[clasp::kSumsMultiple];
    std::fill(std::begin(sums), std::end(sums), values.at(i));
    kernels.divide(sums, clasp::kSumsMultiple, 1.0F, halves);
    result.mutable_at(i) = halves[i % clasp::kSumsMultiple].bits;
  }
  return result;
}

// Rounds float32 to 16 bits as a stored sum is rounded. No other operation of the core rounds.
py::array_t<uint16_t> narrow(const std::string& instruction_set, const py::array_t<float>& values,
                             const std::string& scalar) {
  const clasp::Kernels& kernels = kernels_of(instruction_set);
  return scalar_named(scalar) == clasp::Scalar::bfloat16 ? narrowed(kernels.fuse_bfloat16, values)
                                                         : narrowed(kernels.fuse_float16, values);
}

}  // namespace

void bind_arithmetic(py::module_& m) {
  m.def("smallest_first", &clasp::smallest_first);
  m.def("descending_rank", &clasp::descending_rank);
  m.attr("RANK_OF_INVALID") = clasp::kRankOfInvalid;
  m.def("key_index", &clasp::key_index);
  m.attr("RETIRED") = clasp::kRetired;
  m.def("tile", &tile);
  m.attr("TILE_TOKENS") = clasp::kTileTokens;
  m.def("squares", &squares);
  m.def("widen", &widen);
  m.def("narrow", &narrow);
}
