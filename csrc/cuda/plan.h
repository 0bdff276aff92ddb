// Chooses the design for a shape, and how many images are processed per wave. The choice depends on
// neither the batch size nor the budgets, so the bits of an image's result do not depend on the
// other images.
//
// matrix  Computes all similarities of an image on tensor cores. Then one thread block per image
//         completes it and reads one matrix row per step. Two launches per wave of images; N^2
//         floats of memory per image.
// steps   Launches one kernel per step, which compares all tokens with the last pick. 17 bytes of
//         memory per token, 21 with weights.
//
// The matrix design is used wherever it fits: one block holds the coverage of all tokens in
// registers, and the matrix of one image fits into the workspace. Both limits are reached at the
// same N. README.md in this folder estimates the time of both designs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace clasp::cuda {

// Memory limit of one call. A larger batch is processed in waves of images.
inline constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;
// Threads times items of the largest scan block.
inline constexpr int32_t kLargestScan = 512 * 16;

enum class Design { matrix, steps };

// Parses CLASP_KERNELS_CUDA_DESIGN (null if not set). Forcing a design is for benchmarks, and for
// tests of the steps design on small images.
inline std::optional<Design> design_named(const char* name) {
  const std::string given = name == nullptr ? "auto" : name;
  if (given == "auto") return std::nullopt;
  if (given == "matrix") return Design::matrix;
  if (given == "steps") return Design::steps;
  throw std::invalid_argument("CLASP_KERNELS_CUDA_DESIGN must be auto, matrix or steps, got '" +
                              given + "'");
}

// Row stride of the matrix in floats. Each row begins on a cache line.
inline int64_t matrix_stride(int32_t num_tokens) {
  return (int64_t{num_tokens} + 31) / 32 * 32;
}

inline int64_t matrix_bytes(int32_t num_tokens) {
  return num_tokens * matrix_stride(num_tokens) * static_cast<int64_t>(sizeof(float));
}

inline Design design_for(int32_t num_tokens, std::optional<Design> forced, int64_t workspace) {
  const bool has_matrix = num_tokens <= kLargestScan && matrix_bytes(num_tokens) <= workspace;
  if (forced == Design::matrix && !has_matrix) {
    throw std::invalid_argument("CLASP_KERNELS_CUDA_DESIGN=matrix supports at most " +
                                std::to_string(kLargestScan) + " tokens, features has " +
                                std::to_string(num_tokens));
  }
  return forced.value_or(has_matrix ? Design::matrix : Design::steps);
}

// At least one image, even if that exceeds the workspace.
inline int64_t images_per_wave(int64_t num_images, int64_t bytes_per_image, int64_t workspace) {
  const int64_t fitting = workspace / std::max<int64_t>(bytes_per_image, 1);
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(num_images, 1));
}

}  // namespace clasp::cuda
