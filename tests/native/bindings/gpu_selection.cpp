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

std::vector<int32_t> pivots(const Image& image, const std::vector<float>& salience,
                            int64_t num_pivots, int64_t width) {
  std::vector<int32_t> found(width, std::numeric_limits<int32_t>::max());
  TileBlock block(image.backwards);
  const auto rank = [&](int64_t n) {
    return image.valid[n] ? clasp::descending_rank(salience[n]) : clasp::kRankOfInvalid;
  };
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

Picks complete(const std::string& path, const Image& image, const Picks& selected,
               int32_t num_picks) {
  if (path == "matrix") return complete_with_matrix(image, selected, num_picks);
  return complete_by_steps(image, selected, num_picks);
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
  const std::vector<int32_t> best = pivots(image, salience, per_image.pivots, width);
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
  m.def("gpu_design", [](int32_t num_tokens, const char* forced) {
    using clasp::cuda::Design;
    const Design design = clasp::cuda::design_for(num_tokens, clasp::cuda::design_named(forced));
    return design == Design::matrix ? "matrix" : "steps";
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
  m.def("gpu_complete", &gpu_complete);
  m.def("gpu_select", &gpu_select);
}
