// Which design serves a shape, and how many images go through at a time. Neither looks at the batch
// or at budgets to choose how an image is computed, so that its bits do not depend on the others.
//
// matrix   All similarities of an image on tensor cores, then one block an image that reads a row
//          of them a step. Two launches a wave of images, N^2 floats of memory an image.
// cluster  A cluster of blocks an image, with its features in their registers; several tokens are
//          picked at a time. One launch, no memory but that of the pivots.
// steps    A launch a step, which compares all tokens with the last pick. 17 bytes a token of
//          memory.
//
// README.md beside this file counts what they wait for, and why it is the matrix wherever it fits:
// one block must hold how well each token is covered in registers, and the matrix of one image must
// not take more than the workspace, which both end at the same N. The cluster has to be asked for.
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

// Blocks of a cluster: at most, and as many as are launched without asking for more than usual. A
// slice of a GPU may launch fewer.
inline constexpr int32_t kLargestCluster = 16;
inline constexpr int32_t kPortableCluster = 8;

enum class Design { cluster, matrix, steps };

// What CLASP_KERNELS_CUDA_DESIGN says, null if it is not set: for benchmarks of one against the
// other, and for tests of the one that small images do not need.
inline std::optional<Design> design_named(const char* name) {
  const std::string given = name == nullptr ? "auto" : name;
  if (given == "auto") return std::nullopt;
  if (given == "cluster") return Design::cluster;
  if (given == "matrix") return Design::matrix;
  if (given == "steps") return Design::steps;
  throw std::invalid_argument(
      "CLASP_KERNELS_CUDA_DESIGN must be auto, cluster, matrix or steps, got '" + given + "'");
}

// Floats from one row of the matrix to the next: each starts a line of the cache.
inline int64_t matrix_stride(int32_t num_tokens) {
  return (int64_t{num_tokens} + 31) / 32 * 32;
}

inline int64_t matrix_bytes(int32_t num_tokens) {
  return num_tokens * matrix_stride(num_tokens) * static_cast<int64_t>(sizeof(float));
}

// What the registers of a block hold: so many tokens, of up to so many features.
struct ClusterShape {
  int32_t block_tokens;
  int32_t most_dims;
};

inline constexpr ClusterShape kHalfShape{80, 1024};
inline constexpr ClusterShape kWideHalfShape{48, 1536};
inline constexpr ClusterShape kFloatShape{40, 1024};

inline std::optional<ClusterShape> cluster_shape(int element_bytes, int32_t dim) {
  for (const ClusterShape& shape : {kHalfShape, kWideHalfShape, kFloatShape}) {
    const bool is_half = shape.block_tokens != kFloatShape.block_tokens;
    if (is_half == (element_bytes == 2) && dim <= shape.most_dims) return shape;
  }
  return std::nullopt;
}

// The smallest cluster that holds an image, 0 if none does.
inline int32_t smallest_cluster(int32_t num_tokens, const ClusterShape& shape) {
  for (int32_t blocks = 1; blocks <= kLargestCluster; blocks *= 2) {
    if (num_tokens <= blocks * shape.block_tokens) return blocks;
  }
  return 0;
}

// Of so many blocks or, where multiprocessors would idle and `launches(blocks)`, more: each has
// less to compare then. How an image's numbers come about does not change with it.
template <class Launches>
int32_t cluster_size(int32_t smallest, int32_t num_tokens, int64_t num_images,
                     int32_t num_multiprocessors, const Launches& launches) {
  constexpr int32_t kFewTokens = 16;
  int32_t blocks = smallest;
  while (2 * blocks <= kPortableCluster && num_tokens > blocks * kFewTokens &&
         2 * blocks * num_images <= num_multiprocessors && launches(2 * blocks)) {
    blocks *= 2;
  }
  return blocks;
}

// `has_cluster` tells whether a cluster holds the image and the GPU launches it, if one is forced.
inline Design design_for(int32_t num_tokens, std::optional<Design> forced, bool has_cluster) {
  const bool has_matrix = num_tokens <= kLargestScan && matrix_bytes(num_tokens) <= kWorkspaceBytes;
  const auto refuse = [&](const char* name, const std::string& limit) {
    throw std::invalid_argument(std::string("CLASP_KERNELS_CUDA_DESIGN=") + name + " serves " +
                                limit + ", features has " + std::to_string(num_tokens));
  };
  if (forced == Design::matrix && !has_matrix) {
    refuse("matrix", "no more than " + std::to_string(kLargestScan) + " tokens");
  }
  if (forced == Design::cluster && !has_cluster) {
    refuse(
        "cluster",
        "GPUs of compute capability 9.0 or later with code built for them, in half precision for 1 "
        "to 1280 tokens of no more than 1024 features or 768 of 1536, in float32 for 640 of 1024");
  }
  return forced.value_or(has_matrix ? Design::matrix : Design::steps);
}

// At least one, also if it takes more than there should be.
inline int64_t images_per_wave(int64_t num_images, int64_t bytes_per_image) {
  const int64_t fitting = kWorkspaceBytes / std::max<int64_t>(bytes_per_image, 1);
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(num_images, 1));
}

}  // namespace clasp::cuda
