// Converts Python arguments for the core: numpy arrays to matrices, names to instruction sets.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "algorithms/matrix.h"
#include "shared/scalar.h"
#include "simd/kernels.h"

namespace py = pybind11;

// Defined in module.cpp.
const clasp::Kernels& kernels_of(const std::string& instruction_set);

inline clasp::Scalar scalar_named(const std::string& name) {
  if (name == "bfloat16") return clasp::Scalar::bfloat16;
  return name == "float16" ? clasp::Scalar::float16 : clasp::Scalar::float32;
}

// Returns a view. bfloat16 and float16 come as uint16 bit patterns.
inline clasp::Matrix matrix(const py::array& rows, const std::string& scalar) {
  const clasp::Scalar type = scalar_named(scalar);
  if (rows.ndim() != 2 || rows.itemsize() != clasp::scalar_size(type)) {
    throw std::invalid_argument("rows must be [N, D] of " + scalar);
  }
  return {rows.data(),
          type,
          rows.shape(0),
          rows.shape(1),
          rows.strides(0) / rows.itemsize(),
          rows.strides(1) / rows.itemsize()};
}

// Stands in for a thread pool: runs `pieces` ranges, the last one first.
inline auto in_pieces(int64_t pieces) {
  return [pieces](int64_t count, const auto& body) {
    const int64_t size = (count + pieces - 1) / pieces;
    for (int64_t piece = pieces - 1; piece >= 0; --piece) {
      const int64_t begin = std::min(piece * size, count);
      const int64_t end = std::min(begin + size, count);
      if (begin < end) body(begin, end);
    }
  };
}
