// The GPU's selection with its blocks of threads emulated: every launch of csrc/cuda, tile by tile,
// with dot products in plain loops where the GPU has tensor cores and warps.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"
#include "core/block_cover.h"
#include "core/block_output.h"
#include "core/block_ranking.h"
#include "core/block_scan.h"
#include "core/block_similarities.h"
#include "core/cluster_scan.h"
#include "core/image_budget.h"
#include "core/tile_pairs.h"
#include "cuda/plan.h"
#include "emulated_block.h"

namespace {

using Picks = std::vector<int64_t>;

// Few threads, so that few tokens make several blocks and items.
constexpr int kTile = 4;
using TileBlock = EmulatedBlock<8, 1>;
using ScanBlock = EmulatedBlock<4, 32>;
constexpr int kColumns = 3;
constexpr int kSlots = 24;
constexpr int kRows = kSlots + kColumns;
constexpr int kPartials = 2;
using ClusterWarp = EmulatedBlock<8, 3>;

// The sum starts somewhere else for each `a`, so that dot products of a with b and of b with a are
// rounded differently.
float dot(const clasp::Matrix& features, int64_t a, int64_t b) {
  float sum = 0;
  for (int64_t i = 0; i < features.num_columns; ++i) {
    const int64_t d = (i + a) % features.num_columns * features.column_stride;
    sum += features.element(features.row(a), d) * features.element(features.row(b), d);
  }
  return sum;
}

struct Image {
  clasp::Matrix features;
  std::vector<bool> valid;
  bool backwards;

  int32_t size() const { return static_cast<int32_t>(features.num_rows); }
  float norm(int64_t n) const { return std::sqrt(dot(features, n, n)); }
};

// [N, N] with rows further apart than they are long; NaN where nothing is written.
std::vector<float> similarities(const Image& image, int64_t stride) {
  std::vector<float> matrix(int64_t{image.size()} * stride,
                            std::numeric_limits<float>::quiet_NaN());
  const int64_t num_blocks = (image.size() + kTile - 1) / kTile;
  TileBlock block(image.backwards);
  for (int64_t index = 0; index < clasp::num_tile_pairs(num_blocks); ++index) {
    const clasp::TilePair pair = clasp::tile_pair(index);
    float dots[kTile * (kTile + 1)] = {};
    float norms[2 * kTile] = {};
    for (int r = 0; r < kTile; ++r) {
      const int64_t a = int64_t{pair.row} * kTile + r;
      const int64_t b = int64_t{pair.column} * kTile + r;
      if (a < image.size()) norms[r] = image.norm(a);
      if (b < image.size()) norms[kTile + r] = image.norm(b);
      for (int c = 0; c < kTile && a < image.size(); ++c) {
        const int64_t other = int64_t{pair.column} * kTile + c;
        if (other < image.size()) dots[r * (kTile + 1) + c] = dot(image.features, a, other);
      }
    }
    clasp::store_similarities<kTile>(block, dots, kTile + 1, norms, pair,
                                     {matrix.data(), stride, image.size()});
  }
  return matrix;
}

// "cluster8" -> 8; 0 for the other designs.
int32_t num_cluster_blocks(const std::string& path) {
  const std::string name = "cluster";
  return path.starts_with(name) ? std::stoi(path.substr(name.size())) : 0;
}

// By blocks of tokens as the matrix and the steps take them, or by shares of `num_blocks`.
std::vector<int32_t> pivots(const Image& image, const std::vector<float>& salience,
                            int64_t num_pivots, int64_t width, int32_t num_shares) {
  std::vector<int32_t> found(width, std::numeric_limits<int32_t>::max());
  TileBlock block(image.backwards);
  const auto rank = [&](int64_t n) {
    return image.valid[n] ? clasp::descending_rank(salience[n]) : clasp::kRankOfInvalid;
  };
  for (int32_t b = num_shares - 1; b >= 0; --b) {
    using ShareBlock = EmulatedBlock<2 * kSlots + 5, 1>;
    ShareBlock threads(image.backwards);
    const auto share = clasp::TokenShare::of(image.size(), num_shares, b);
    std::vector<uint64_t> keys(image.size());
    int32_t counts[kSlots + 1];
    clasp::rank_share<kSlots>(threads, share.first, share.count, image.size(), rank, keys.data(),
                              counts, {found.data(), num_pivots, width});
  }
  if (num_shares > 0) return found;
  // The last block first, as on a GPU no order is promised.
  const int32_t num_blocks = std::max(1, (image.size() + 7) / 8);
  for (int32_t b = num_blocks - 1; b >= 0; --b) {
    uint64_t keys[TileBlock::kThreads];
    clasp::rank_block(block, b * TileBlock::kThreads, image.size(), rank, keys,
                      {found.data(), num_pivots, width});
  }
  return found;
}

Picks complete_with_matrix(const Image& image, const Picks& selected, int32_t num_picks) {
  const int64_t stride = image.size() + 3;
  // The matrix is not there where there is nothing to pick.
  const std::vector<float> matrix =
      num_picks > 0 ? similarities(image, stride) : std::vector<float>();
  Picks picks;
  ScanBlock block(image.backwards);
  const int32_t count = clasp::complete(
      block, {matrix.data(), stride, image.size()},
      [&](int64_t i) { return static_cast<int32_t>(selected[i]); },
      static_cast<int64_t>(selected.size()), num_picks,
      [&](int32_t n) { return static_cast<bool>(image.valid[n]); },
      [&](int thread, int32_t step, int32_t n) {
        if (thread == 0 && step == static_cast<int32_t>(picks.size())) picks.push_back(n);
      });
  if (count != static_cast<int32_t>(picks.size())) throw std::logic_error("picks are missing");
  return picks;
}

Picks complete_by_steps(const Image& image, const Picks& selected, int32_t num_picks) {
  std::vector<float> covered(image.size(), -std::numeric_limits<float>::infinity());
  std::vector<uint8_t> free(image.valid.begin(), image.valid.end());
  const auto similarity = [&](int32_t a, int32_t b) {
    return clasp::cosine(dot(image.features, a, b), image.norm(a), image.norm(b));
  };
  Picks picks;
  Picks sources = selected;
  ScanBlock block(image.backwards);
  for (int32_t step = 0; step < num_picks; ++step) {
    uint64_t best = clasp::kRetired;
    for (int32_t first = 0; first < image.size(); first += 5) {
      const uint64_t key = clasp::cover_tokens(
          block, first, std::min(first + 5, image.size()), static_cast<int64_t>(sources.size()),
          [&](int64_t i) { return static_cast<int32_t>(sources[i]); }, similarity,
          {covered.data(), free.data()});
      best = std::min(best, key);
    }
    if (best == clasp::kRetired) break;
    picks.push_back(clasp::key_index(best));
    sources = {picks.back()};
  }
  return picks;
}

// What each block of a cluster has in its shared memory, and its warp in registers.
struct ClusterBlock {
  clasp::TokenShare share;
  clasp::Candidates<kColumns> candidates;
  float dots[kPartials * kRows * kColumns];
  clasp::Offer offers[2][ClusterWarp::kThreads];
  clasp::ShareCoverage<ClusterWarp> coverage;
};

class EmulatedCluster {
 public:
  EmulatedCluster(const Image& image, int32_t num_blocks)
      : image_(image), warp_(image.backwards), block_(image.backwards), num_blocks_(num_blocks) {
    if (num_blocks > ClusterWarp::kThreads) throw std::logic_error("more blocks than threads");
    for (int32_t b = 0; b < num_blocks; ++b) {
      const auto share = clasp::TokenShare::of(image.size(), num_blocks, b);
      if (share.count > kSlots) throw std::logic_error("more tokens than slots");
      blocks_.push_back(std::make_unique<ClusterBlock>(
          ClusterBlock{share, {}, {}, {}, {warp_, share, [&](int32_t n) {
                                             return static_cast<bool>(image.valid[n]);
                                           }}}));
    }
    for (int64_t n = 0; n < image.size(); ++n) norms_.push_back(image.norm(n));
  }

  Picks complete(const Picks& selected, int32_t num_picks) {
    for (size_t first = 0; first < selected.size(); first += kColumns) {
      each_block([&](ClusterBlock& block) {
        for (size_t c = 0; c < kColumns; ++c) {
          block.candidates.tokens[c] =
              first + c < selected.size() ? static_cast<int32_t>(selected[first + c]) : -1;
        }
        const auto similarities = compare(block);
        for (int c = 0; c < kColumns; ++c) {
          const int32_t token = block.candidates.tokens[c];
          if (token < 0) continue;
          block.coverage.cover(token, [&](int32_t slot) { return similarities.of_slot(slot, c); });
        }
      });
    }
    Picks picks;
    for (num_passes = 0; static_cast<int32_t>(picks.size()) < num_picks; ++num_passes) {
      const int turn = num_passes % 2;
      for (int32_t b = 0; b < num_blocks_; ++b) {
        const clasp::Offer offer = blocks_[b]->coverage.offer();
        for (const auto& other : blocks_) other->offers[turn][b] = offer;
      }
      std::vector<Picks> found;  // of each block
      each_block([&](ClusterBlock& block) {
        clasp::choose_candidates(warp_, block.offers[turn], num_blocks_, block.candidates);
        const auto similarities = compare(block);
        Picks& own = found.emplace_back();
        const auto most = num_picks - static_cast<int32_t>(picks.size());
        const int32_t taken =
            clasp::pick_candidates(warp_, block.candidates, similarities, most, block.coverage,
                                   [&](int thread, int32_t i, int32_t n) {
                                     if (thread == 0 && i == static_cast<int32_t>(own.size()))
                                       own.push_back(n);
                                   });
        if (taken != static_cast<int32_t>(own.size())) throw std::logic_error("picks are missing");
      });
      for (const Picks& own : found) {
        if (own != found[0]) throw std::logic_error("blocks disagree");
      }
      if (found[0].empty()) break;
      picks.insert(picks.end(), found[0].begin(), found[0].end());
    }
    return picks;
  }

  int32_t num_passes = 0;

 private:
  template <class Body>
  void each_block(const Body& body) {
    for (int32_t i = 0; i < num_blocks_; ++i) {
      body(*blocks_[image_.backwards ? num_blocks_ - 1 - i : i]);
    }
  }

  float norm(int32_t n) const { return n >= 0 && n < image_.size() ? norms_[n] : 0; }

  clasp::PassSimilarities<kColumns> compare(ClusterBlock& block) {
    const auto row_token = [&](int row) {
      return row >= kSlots             ? block.candidates.tokens[row - kSlots]
             : row < block.share.count ? block.share.first + row
                                       : -1;
    };
    for (int row = 0; row < kRows; ++row) {
      const int32_t a = row_token(row);
      for (int column = 0; column < kColumns; ++column) {
        const int32_t b = block.candidates.tokens[column];
        float sums[kPartials] = {};
        for (int64_t d = 0; a >= 0 && b >= 0 && d < image_.features.num_columns; ++d) {
          const int64_t at = d * image_.features.column_stride;
          sums[d % kPartials] += image_.features.element(image_.features.row(a), at) *
                                 image_.features.element(image_.features.row(b), at);
        }
        for (int part = 0; part < kPartials; ++part) {
          block.dots[(part * kRows + row) * kColumns + column] = sums[part];
        }
      }
    }
    clasp::sum_similarities<kPartials, kRows, kColumns>(
        block_, block.dots, [&](int row) { return norm(row_token(row)); },
        [&](int column) { return norm(block.candidates.tokens[column]); });
    return {block.dots, kSlots};
  }

  Image image_;
  ClusterWarp warp_;
  TileBlock block_;
  int32_t num_blocks_;
  std::vector<float> norms_;
  std::vector<std::unique_ptr<ClusterBlock>> blocks_;
};

Picks complete(const std::string& path, const Image& image, const Picks& selected,
               int32_t num_picks) {
  if (path == "matrix") return complete_with_matrix(image, selected, num_picks);
  if (path == "steps") return complete_by_steps(image, selected, num_picks);
  return EmulatedCluster(image, num_cluster_blocks(path)).complete(selected, num_picks);
}

int32_t gpu_cluster_passes(const py::array& features, int64_t first, int64_t num_picks,
                           int32_t num_blocks) {
  const Image image{matrix(features, "float32"), std::vector<bool>(features.shape(0), true), false};
  EmulatedCluster cluster(image, num_blocks);
  cluster.complete({first}, static_cast<int32_t>(num_picks));
  return cluster.num_passes;
}

Picks gpu_complete(const std::string& path, const py::array& features, const std::string& scalar,
                   const Picks& selected, int64_t num_picks, const std::vector<bool>& valid,
                   bool backwards) {
  const Image image{matrix(features, scalar), valid, backwards};
  const auto most = static_cast<int32_t>(std::min<int64_t>(num_picks, image.size()));
  return complete(path, image, selected, most);
}

std::tuple<Picks, std::vector<bool>, int64_t> gpu_select(
    const std::string& path, const py::array& features, const std::string& scalar,
    const std::vector<float>& salience, int64_t width, int64_t budget, int64_t num_pivots,
    const std::vector<bool>& valid, bool backwards) {
  const Image image{matrix(features, scalar), valid, backwards};
  const auto per_image = clasp::ImageBudget::of({&budget, 1, width}, {&num_pivots, 1, width}, 0);
  const std::vector<int32_t> best =
      pivots(image, salience, per_image.pivots, width, num_cluster_blocks(path));
  const Picks selected(best.begin(), best.end());
  const Picks picks = complete(path, image, selected, per_image.picks(image.size()));

  std::vector<uint32_t> kept(clasp::num_words(image.size()));
  std::vector<uint32_t> pivot(kept.size());
  ScanBlock block(backwards);
  const clasp::KeptTokens tokens{kept.data(), pivot.data(), static_cast<int32_t>(kept.size())};
  clasp::mark_pivots(block, best.data(), per_image.pivots, tokens);
  if (per_image.keeps_all(image.size())) {
    clasp::mark_kept(
        block, image.size(), [&](int32_t n) { return static_cast<bool>(valid[n]); }, tokens);
  }
  for (const int64_t n : picks) block.set_bit(kept.data(), static_cast<int32_t>(n));
  Picks indices(width, -2);
  const auto is_pivot = std::make_unique<bool[]>(width);
  int64_t count = -2;
  int32_t totals[ScanBlock::kThreads];
  clasp::write_selection(block, tokens, totals, {indices.data(), is_pivot.get(), &count, width});
  return {indices, std::vector<bool>(is_pivot.get(), is_pivot.get() + width), count};
}

}  // namespace

void bind_gpu_selection(py::module_& m) {
  m.def("gpu_design", [](int32_t num_tokens, const char* forced, bool has_cluster) {
    using clasp::cuda::Design;
    switch (clasp::cuda::design_for(num_tokens, clasp::cuda::design_named(forced), has_cluster)) {
      case Design::cluster:
        return "cluster";
      case Design::matrix:
        return "matrix";
      default:
        return "steps";
    }
  });
  m.def("gpu_smallest_cluster", [](int element_bytes, int32_t num_tokens, int32_t dim) {
    const auto shape = clasp::cuda::cluster_shape(element_bytes, dim);
    return shape ? clasp::cuda::smallest_cluster(num_tokens, *shape) : 0;
  });
  m.def("gpu_cluster_size", [](int32_t smallest, int32_t num_tokens, int64_t num_images,
                               int32_t num_multiprocessors, int32_t largest) {
    return clasp::cuda::cluster_size(smallest, num_tokens, num_images, num_multiprocessors,
                                     [&](int32_t blocks) { return blocks <= largest; });
  });
  m.def("gpu_token_shares", [](int32_t num_tokens, int32_t num_blocks) {
    std::vector<std::pair<int32_t, int32_t>> shares;
    for (int32_t block = 0; block < num_blocks; ++block) {
      const auto share = clasp::TokenShare::of(num_tokens, num_blocks, block);
      shares.emplace_back(share.first, share.count);
    }
    return shares;
  });
  m.def("gpu_matrix_bytes", &clasp::cuda::matrix_bytes);
  m.def("gpu_images_per_wave", &clasp::cuda::images_per_wave);
  m.def("tile_pairs", [](int64_t num_blocks) {
    std::vector<std::pair<int32_t, int32_t>> pairs;
    for (int64_t index = 0; index < clasp::num_tile_pairs(num_blocks); ++index) {
      const clasp::TilePair pair = clasp::tile_pair(index);
      pairs.emplace_back(pair.row, pair.column);
    }
    return pairs;
  });
  m.def("gpu_similarities", [](const py::array& features, const std::string& scalar) {
    const Image image{matrix(features, scalar), {}, false};
    return similarities(image, image.size());
  });
  m.def("gpu_cluster_passes", &gpu_cluster_passes);
  m.def("gpu_complete", &gpu_complete);
  m.def("gpu_select", &gpu_select);
}
