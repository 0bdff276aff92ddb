// Greedy completion by a cluster of blocks an image, whose registers hold its features: one launch
// does all. core/cluster_scan.h says how several tokens are picked at a time.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "core/block_output.h"
#include "core/block_ranking.h"
#include "core/cluster_scan.h"
#include "core/image_budget.h"
#include "cuda/block.cuh"
#include "cuda/plan.h"
#include "cuda/ranking.cuh"
#include "cuda/resident_rows.cuh"
#include "cuda/scan.cuh"
#include "cuda/tensors.h"

namespace clasp::cuda {

// Where an image starts from, and what becomes of its picks.
struct ClusterCompletion {
  Selected<int64_t> selected;
  Mask valid;
  int64_t* picks;  // [B, width]
  int64_t width;
};

struct ClusterSelection {
  Ranking ranking;
  Outputs outputs;
};

template <class T, int kTokens, int kDims>
struct ClusterMemory {
  using Rows = ResidentRows<T, kTokens, kDims>;
  static constexpr int kMostTokens = kLargestCluster * kTokens;
  static constexpr int kWords = (kMostTokens + 31) / 32;

  union {
    Stage<T, kDims> stage;
    uint64_t rank_keys[kMostTokens];
  };
  union {
    typename Rows::Dots dots;
    int32_t totals[kRowThreads];
  };
  float norms[kMostTokens];  // of all of the image's tokens
  Offer offers[2][kLargestCluster];
  Candidates<Rows::kColumns> candidates;
  int32_t row_tokens[kGroupRows];
  int32_t rank_counts[kTokens + 1];
  // One bit a token, in the first block only.
  uint32_t kept[kWords];
  uint32_t pivot_bits[kWords];
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// What all blocks of a cluster do for one image, in lockstep.
template <class T, int kTokens, int kDims>
class ClusterBlock {
 public:
  using Memory = ClusterMemory<T, kTokens, kDims>;
  using Rows = typename Memory::Rows;
  static constexpr int kColumns = Rows::kColumns;
  static constexpr int kItems = (kTokens + kWarpSize - 1) / kWarpSize;

  __device__ ClusterBlock(const Features<T>& features, bool is_aligned, Memory& memory)
      : features_(features),
        is_aligned_(is_aligned),
        memory_(memory),
        cluster_(cooperative_groups::this_cluster()),
        share_(TokenShare::of(features.num_tokens, num_blocks(), rank())) {}

  __device__ int32_t num_blocks() const { return static_cast<int32_t>(cluster_.num_blocks()); }
  __device__ int32_t rank() const { return static_cast<int32_t>(cluster_.block_rank()); }
  __device__ int64_t image() const { return blockIdx.x / cluster_.num_blocks(); }
  __device__ const TokenShare& share() const { return share_; }
  __device__ void sync_cluster() const { cluster_.sync(); }

  __device__ void load() {
    rows_.load(features_, is_aligned_, image(), share_.first, share_.count, memory_.stage,
               memory_.row_tokens);
  }

  // As clasp::complete in core/block_scan.h, for num_picks that is not 0. The cluster has met at a
  // barrier since its blocks started.
  template <class Source, class Available, class Picked>
  __device__ void complete(const Source& selected, int64_t num_selected, int32_t num_picks,
                           const Available& available, const Picked& picked) {
    share_norms();
    Warp<kItems> warp;
    ShareCoverage<Warp<kItems>> coverage(warp, share_, available);
    Candidates<kColumns>& candidates = memory_.candidates;
    for (int64_t first = 0; first < num_selected; first += kColumns) {
      if (threadIdx.x < kColumns) {
        const int64_t slot = first + threadIdx.x;
        candidates.tokens[threadIdx.x] = slot < num_selected ? selected(slot) : -1;
      }
      __syncthreads();
      const PassSimilarities<kColumns> similarities = compare();
      if (is_first_warp()) {
        for (int column = 0; column < kColumns; ++column) {
          const int32_t token = candidates.tokens[column];
          if (token < 0) continue;
          coverage.cover(token, [&](int32_t slot) { return similarities.of_slot(slot, column); });
        }
      }
      __syncthreads();
    }
    int32_t done = 0;
    for (int turn = 0;; turn = 1 - turn) {
      if (is_first_warp()) {
        // With nothing more to pick, no block has anything to offer, and all of them end together.
        make_offer(done < num_picks ? coverage.offer() : Offer{kRetired, kRetired}, turn);
      }
      cluster_.sync();
      if (is_first_warp()) {
        choose_candidates(warp, memory_.offers[turn], num_blocks(), candidates);
      }
      __syncthreads();
      if (candidates.tokens[0] < 0) return;
      const PassSimilarities<kColumns> similarities = compare();
      if (is_first_warp()) {
        done +=
            pick_candidates(warp, candidates, similarities, num_picks - done, coverage,
                            [&](int thread, int32_t i, int32_t n) { picked(thread, done + i, n); });
      }
    }
  }

 private:
  __device__ static bool is_first_warp() { return threadIdx.x < kWarpSize; }

  // Every block gets the norms of all tokens; and the cluster meets at a barrier.
  __device__ void share_norms() {
    rows_.store_squares(memory_.dots);
    __syncthreads();
    const auto slot = static_cast<int32_t>(threadIdx.x);
    if (slot < share_.count) {
      float square = 0.0F;
#  pragma unroll
      for (int warp = 0; warp < kRowWarps; ++warp) square += memory_.dots[warp][slot][0];
      const float norm = sqrtf(square);
      for (int32_t block = 0; block < num_blocks(); ++block) {
        cluster_.map_shared_rank(memory_.norms, block)[share_.first + slot] = norm;
      }
    }
    cluster_.sync();
  }

  // To all blocks, by the lanes of a warp. Two turns have room, as some blocks may still read what
  // was offered before while others make their next offer.
  __device__ void make_offer(const Offer& offer, int turn) {
    static_assert(kLargestCluster <= kWarpSize);
    if (static_cast<int32_t>(threadIdx.x) >= num_blocks()) return;
    cluster_.map_shared_rank(memory_.offers[turn], threadIdx.x)[rank()] = offer;
  }

  // This block's tokens, and the candidates, with the candidates.
  __device__ PassSimilarities<kColumns> compare() {
    const Candidates<kColumns>& candidates = memory_.candidates;
    memory_.stage.load(features_, is_aligned_, image(), candidates.tokens, kColumns);
    __syncthreads();
    rows_.store_dots(memory_.stage, memory_.dots);
    __syncthreads();
    const auto norm = [&](int32_t token) { return token < 0 ? 0.0F : memory_.norms[token]; };
    const Block<kRowThreads, 1> block;
    float* dots = &memory_.dots[0][0][0];
    sum_similarities<kRowWarps, Rows::kAll, kColumns>(
        block, dots,
        [&](int row) {
          if (row >= kTokens) return norm(candidates.tokens[row - kTokens]);
          return row < share_.count ? norm(share_.first + row) : 0.0F;
        },
        [&](int column) { return norm(candidates.tokens[column]); });
    __syncthreads();
    return {dots, kTokens};
  }

  Features<T> features_;
  bool is_aligned_;
  Memory& memory_;
  cooperative_groups::cluster_group cluster_;
  TokenShare share_;
  Rows rows_;
};

#endif

template <class T, int kTokens, int kDims>
__global__ __launch_bounds__(kRowThreads, 1) void cluster_complete_kernel(Features<T> features,
                                                                          bool is_aligned,
                                                                          ClusterCompletion job) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ __align__(16) ClusterMemory<T, kTokens, kDims> memory;
  ClusterBlock<T, kTokens, kDims> block(features, is_aligned, memory);
  const int64_t image = block.image();
  const int32_t num_tokens = features.num_tokens;
  const bool writes = block.rank() == 0;
  int64_t* row = job.picks + image * job.width;
  block.load();
  if (writes) {
    for (int64_t i = threadIdx.x; i < job.width; i += kRowThreads) row[i] = -1;
  }
  block.sync_cluster();
  block.complete([&](int64_t slot) { return job.selected.at(image, slot, num_tokens); },
                 job.selected.width,
                 job.width < num_tokens ? static_cast<int32_t>(job.width) : num_tokens,
                 [&](int32_t n) { return job.valid.at(image, n); },
                 [&](int thread, int32_t i, int32_t n) {
                   if (writes && thread == 0) row[i] = n;
                 });
#endif
}

template <class T, int kTokens, int kDims>
__global__ __launch_bounds__(kRowThreads, 1) void cluster_select_kernel(Features<T> features,
                                                                        bool is_aligned,
                                                                        ClusterSelection job) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  __shared__ __align__(16) ClusterMemory<T, kTokens, kDims> memory;
  ClusterBlock<T, kTokens, kDims> block(features, is_aligned, memory);
  const Block<kRowThreads, 1> threads;
  const int64_t image = block.image();
  const int32_t num_tokens = features.num_tokens;
  const bool writes = block.rank() == 0;
  const Ranking& ranking = job.ranking;
  const ImageBudget budget = ImageBudget::of(ranking.budget, ranking.pivot_counts, image);
  const int32_t num_picks = budget.picks(num_tokens);
  int32_t* pivots = ranking.pivots + image * ranking.width;
  const KeptTokens tokens{memory.kept, memory.pivot_bits, num_words(num_tokens)};

  // On their way while pivots are counted.
  if (num_picks > 0) block.load();
  if (writes) {
    for (int w = threadIdx.x; w < tokens.words; w += kRowThreads) {
      tokens.kept[w] = tokens.pivots[w] = 0;
    }
  }
  rank_share<kTokens>(threads, block.share().first, block.share().count, num_tokens,
                      [&](int32_t n) { return ranking.rank(image, n); }, memory.rank_keys,
                      memory.rank_counts, {pivots, budget.pivots, ranking.width});
  block.sync_cluster();
  if (num_picks > 0) {
    block.complete([&](int64_t slot) { return pivots[slot]; }, budget.pivots, num_picks,
                   [&](int32_t n) { return ranking.valid.at(image, n); },
                   [&](int thread, int32_t, int32_t n) {
                     if (writes && thread == 0) tokens.kept[n / 32] |= 1U << n % 32;
                   });
  }
  if (!writes) return;
  mark_known(threads, ranking, image, budget, tokens);
  __syncthreads();
  write_selection(threads, tokens, memory.totals, job.outputs.row(image));
#endif
}

}  // namespace clasp::cuda
