// Which design serves a shape, and how many images go through at a time. Neither looks at the batch
// or at budgets to choose how an image is computed, so that its bits do not depend on the others.
//
// matrix  All similarities of an image on tensor cores, then one block an image that reads a row
//         of them a step. Two launches a wave of images, N^2 floats of memory an image.
// steps   A launch a step, which compares all tokens with the last pick. 17 bytes a token of
// memory.
//
// The matrix serves wherever it fits: one block must hold how well each token is covered in
// registers, and the matrix of one image must not take more than the workspace. Both end at the
// same N. README.md beside this file counts what the designs wait for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace clasp::cuda {

// What one call may take, whatever the batch; a larger batch goes through in waves of images.
inline constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;
// Threads and items of the largest block that scans.
inline constexpr int32_t kLargestScan = 512 * 16;

enum class Design { matrix, steps };

// What CLASP_KERNELS_CUDA_DESIGN says, null if it is not set: for benchmarks of one against the
// other, and for tests of the one that small images do not need.
inline std::optional<Design> design_named(const char* name) {
  const std::string given = name == nullptr ? "auto" : name;
  if (given == "auto") return std::nullopt;
  if (given == "matrix") return Design::matrix;
  if (given == "steps") return Design::steps;
  throw std::invalid_argument("CLASP_KERNELS_CUDA_DESIGN must be auto, matrix or steps, got '" +
                              given + "'");
}

// Floats from one row of the matrix to the next: each starts a line of the cache.
inline int64_t matrix_stride(int32_t num_tokens) {
  return (int64_t{num_tokens} + 31) / 32 * 32;
}

inline int64_t matrix_bytes(int32_t num_tokens) {
  return num_tokens * matrix_stride(num_tokens) * static_cast<int64_t>(sizeof(float));
}

inline Design design_for(int32_t num_tokens, std::optional<Design> forced, int64_t workspace) {
  const bool has_matrix = num_tokens <= kLargestScan && matrix_bytes(num_tokens) <= workspace;
  if (forced == Design::matrix && !has_matrix) {
    throw std::invalid_argument("CLASP_KERNELS_CUDA_DESIGN=matrix serves no more than " +
                                std::to_string(kLargestScan) + " tokens, features has " +
                                std::to_string(num_tokens));
  }
  return forced.value_or(has_matrix ? Design::matrix : Design::steps);
}

// At least one, also if it takes more than there should be.
inline int64_t images_per_wave(int64_t num_images, int64_t bytes_per_image, int64_t workspace) {
  const int64_t fitting = workspace / std::max<int64_t>(bytes_per_image, 1);
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(num_images, 1));
}

}  // namespace clasp::cuda
