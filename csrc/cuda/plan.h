// Which design serves a shape, and how many images go through at a time. Neither looks at the batch
// or at budgets to choose how an image is computed, so that its bits do not depend on the others.
//
// matrix   All similarities of an image on tensor cores, then one block an image that reads a row
//          of them a step. Two launches a wave of images, N^2 floats of memory an image.
// cluster  A cluster of blocks an image, with its features in their registers; several tokens are
//          picked at a time. One launch, no memory.
// steps    A launch a step, which compares all tokens with the last pick. 17 bytes a token of
//          memory.
//
// Counted, not measured, for bfloat16 on an H200: 132 multiprocessors at 1.8 GHz, 4.8 TB/s from
// memory and some 5.5 TB/s from L2; a trip takes 270 cycles to L2, some 600 to memory and 180 to
// another multiprocessor's shared memory (the first and last as measured in arXiv 2402.13499); a
// barrier of a block with a minimum over it 130 cycles, of a cluster with what is written to it
// 400; an m16n8k16 product keeps a tensor core busy for 7. A launch is 3 us, the next one 1 us.
//
//   576 x 1024 -> 64, 32 pivots; reading the features once takes 16 us for 64 images
//     matrix   B=1: 45 tiles of 64 x 64 at once, 16 slices each at one trip to L2 or memory, 6 us;
//              8 trips for the pivots, four rows at once, 1.5 us; 32 steps of a trip, a minimum and
//              60 cycles of arithmetic, 0.26 us each, 8 us. 20 to 25 us: the chain of trips to L2.
//              B=64: tiles read 10.6 MB an image from L2, 680 MB, 125 us; the scans run side by
//              side, but their 85 MB do not all stay in L2, 0.3 to 0.45 us a step, 10 to 15 us.
//              140 to 160 us: the way from L2.
//     cluster  B=1: 8 blocks hold 72 tokens each. 1.3 us for the features, beside which pivots are
//              found; 4 passes with 8 pivots each, 1 us; 11 to 14 passes of 1.4 us, each a barrier
//              of the cluster (400 cycles) and the choice of candidates (200), their rows by way of
//              shared memory (400), 6 x 8 products on each warp of two to a tensor core (700),
//              their sums (250), two to three picks (400) and an offer (150). 25 to 30 us: the
//              chain. B=64: 14 to 16 clusters at a time, as those of a GPC can be, one block to a
//              multiprocessor, so that nothing hides the chain; 4 or 5 rounds, 95 to 140 us.
//     steps    B=1: 32 launches of some 4 us, a trip for each of the 4 tokens of a warp and the
//              launch itself, after a first step that compares with every pivot in turn: 150 us and
//              more.
//   576 x 1024 -> 192, 96 pivots
//     matrix   B=1: 24 trips for the pivots, 4 us; 96 steps; 40 us. B=64: 160 to 180 us.
//     cluster  B=1: 12 passes for the pivots and 25 to 35 for the rest; 55 to 65 us. B=64: 230 to
//              300 us.
//   2880 x 1024 -> 320, 160 pivots
//     matrix   B=1: 1035 tiles read 260 MB from L2, 50 us; 40 trips for the pivots, 8 us; 160 steps
//              with rows of 11.5 KB, 0.3 to 0.4 us each, 50 to 65 us. 110 to 130 us, half of it the
//              way from L2 and half the chain. B=64: 8 waves of 8 images; tiles read 17 GB from L2,
//              3 ms, and the scans of a wave take 0.1 ms. 4 ms: the way from L2.
//     steps    B=1: 160 launches that read 5.9 MB from L2 each, some 6 us, and a first step with
//     160
//              trips a token: over 1 ms.
//     The registers of 16 blocks hold 2.6 MB, these features are 5.9 MB.
//
// A step costs the cluster twice what it costs the matrix, which has paid for its product before;
// so the cluster is the faster one for many images of small budgets, up to some 40 picks of 576
// tokens, and the matrix for larger ones and for one image at a time. As budgets may not decide, it
// is the matrix wherever it fits: one block must hold how well each token is covered in registers,
// and the matrix of one image must not take more than the workspace. Both end at the same N. The
// cluster has to be asked for, until a measurement says otherwise.
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
    refuse("cluster",
           "GPUs of compute capability 9.0 or later, in half precision for 1 to 1280 tokens of no "
           "more than 1024 features or 768 of 1536, in float32 for 640 of 1024");
  }
  return forced.value_or(has_matrix ? Design::matrix : Design::steps);
}

// At least one, also if it takes more than there should be.
inline int64_t images_per_wave(int64_t num_images, int64_t bytes_per_image) {
  const int64_t fitting = kWorkspaceBytes / std::max<int64_t>(bytes_per_image, 1);
  return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(num_images, 1));
}

}  // namespace clasp::cuda
