// Which design serves a shape, and how many images go through at a time. Neither looks at the batch
// to choose how an image is computed, so that an image's bits do not depend on the others.
//
// matrix  All similarities of an image on tensor cores, then one block an image that reads a row of
//         them a step. Two launches a wave of images, N^2 floats of memory an image.
// steps   A launch a step, which compares all tokens with the last pick. 17 bytes a token of
// memory.
//
// Counted, not measured, for bfloat16 on an H200 (132 multiprocessors at 1.8 GHz, 5.5 TB/s from L2
// to them, 0.3 to 0.4 us for an access to L2 and 0.6 to 0.8 us for one to memory):
//
//   576 x 1024 -> 64, 32 pivots
//     matrix  B=1: 45 tiles of 64 x 64 at once, 16 slices each at one trip to L2 or memory, 8 to
//             12 us; 8 trips for the pivots, four rows at once, 4 us; 32 steps of a trip and a
//             barrier, 0.7 to 0.9 us each, 22 to 29 us. 35 to 45 us: the latency of the chain.
//             B=64: tiles read 10.6 MB an image from L2, 680 MB, 125 us; the scans run side by
//             side, but their 85 MB do not stay in L2: 1.0 to 1.3 us a step, 40 us. 165 to 190 us,
//             most of it the way from L2.
//     steps   B=1: 32 launches of some 5 us, a trip for each of the 4 tokens of a warp and the
//             launch itself, after a first step that compares with every pivot in turn: over 200
//             us.
//     A cluster of 8 blocks with the features in their shared memory would take, a step: 147 KB of
//             shared memory a block at 128 bytes a cycle, 0.64 us, and as much again for issuing
//             two instructions an element, to widen it and to multiply; 0.3 us for the pick's row
//             from its owner, 0.4 us for the cluster's barrier and the minimum. 1.4 to 1.9 us,
//             which is twice the matrix's step, and 45 to 60 us for 32 of them. 16 clusters fit at
//             once, so B=64 takes four rounds: 200 us and more.
//   2880 x 1024 -> 320, 160 pivots
//     matrix  B=1: 1035 tiles read 260 MB from L2, 50 us; 40 trips for the pivots, 20 us; 160 steps
//             with rows of 11.5 KB, 0.9 to 1.1 us each, 145 to 175 us. 215 to 245 us: the chain.
//             B=64: 8 waves of 8 images; tiles read 17 GB from L2, 3 ms, and each wave's scans take
//             0.2 to 0.3 ms. 5 ms: the way from L2.
//     steps   B=1: 160 launches that read 5.9 MB from L2 each, some 6 us, and a first step with 160
//             trips a token: over 1.2 ms.
//     A cluster of 16 blocks holds 3.6 MB, these features are 5.9 MB.
//
// So the matrix wherever it fits: one block must hold how well each token is covered in registers,
// and the matrix of one image must not take more than the workspace. Both end at the same N.
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

inline Design design_for(int32_t num_tokens, std::optional<Design> forced) {
  const bool fits = num_tokens <= kLargestScan && matrix_bytes(num_tokens) <= kWorkspaceBytes;
  if (forced == Design::matrix && !fits) {
    throw std::invalid_argument("CLASP_KERNELS_CUDA_DESIGN=matrix serves no more than " +
                                std::to_string(kLargestScan) + " tokens, features has " +
                                std::to_string(num_tokens));
  }
  return forced.value_or(fits ? Design::matrix : Design::steps);
}

// At least one, also if it takes more than there should be.
inline int64_t images_per_wave(int64_t num_images, int64_t bytes_per_image) {
  const int64_t fitting = kWorkspaceBytes / std::max<int64_t>(bytes_per_image, 1);
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(num_images, 1));
}

}  // namespace clasp::cuda
