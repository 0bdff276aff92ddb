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
#include "emulated_block.h"

namespace {

using Picks = std::vector<int64_t>;

// Few threads, so that few tokens make several blocks and items.
constexpr int kTile = 4;
using TileBlock = EmulatedBlock<8, 1>;
using ScanBlock = EmulatedBlock<4, 32>;

float dot(const clasp::Matrix& features, int64_t a, int64_t b) {
  float sum = 0;
  for (int64_t d = 0; d < features.num_columns; ++d) {
    sum += features.element(features.row(a), d * features.column_stride) *
           features.element(features.row(b), d * features.column_stride);
  }
  return sum;
}

struct Image {
  clasp::Matrix features;
  std::vector<bool> valid;
  bool backwards;

  int64_t size() const { return features.num_rows; }
  float norm(int64_t n) const { return std::sqrt(dot(features, n, n)); }
};

// [N, N] with rows further apart than they are long; NaN where nothing is written.
std::vector<float> similarities(const Image& image, int64_t stride) {
  std::vector<float> matrix(image.size() * stride, std::numeric_limits<float>::quiet_NaN());
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
  const int64_t num_blocks = std::max<int64_t>(1, (image.size() + 7) / 8);
  for (int64_t b = num_blocks - 1; b >= 0; --b) {
    uint64_t keys[TileBlock::kThreads];
    clasp::rank_block(block, b * TileBlock::kThreads, image.size(), rank, keys,
                      {found.data(), num_pivots, width});
  }
  return found;
}

Picks complete_with_matrix(const Image& image, const Picks& selected, int64_t num_picks) {
  const int64_t stride = image.size() + 3;
  const std::vector<float> matrix = similarities(image, stride);
  Picks picks;
  ScanBlock block(image.backwards);
  const int64_t count = clasp::complete(
      block, {matrix.data(), stride, image.size()}, [&](int64_t i) { return selected[i]; },
      static_cast<int64_t>(selected.size()), num_picks,
      [&](int64_t n) { return static_cast<bool>(image.valid[n]); },
      [&](int thread, int64_t step, int64_t n) {
        if (thread == 0 && step == static_cast<int64_t>(picks.size())) picks.push_back(n);
      });
  if (count != static_cast<int64_t>(picks.size())) throw std::logic_error("picks are missing");
  return picks;
}

Picks complete_by_steps(const Image& image, const Picks& selected, int64_t num_picks) {
  std::vector<float> covered(image.size(), -std::numeric_limits<float>::infinity());
  std::vector<uint8_t> free(image.valid.begin(), image.valid.end());
  const auto similarity = [&](int64_t a, int64_t b) {
    return clasp::cosine(dot(image.features, a, b), image.norm(a), image.norm(b));
  };
  Picks picks;
  Picks sources = selected;
  ScanBlock block(image.backwards);
  for (int64_t step = 0; step < num_picks; ++step) {
    uint64_t best = clasp::kRetired;
    for (int64_t first = 0; first < image.size(); first += 5) {
      const uint64_t key = clasp::cover_tokens(
          block, first, std::min<int64_t>(first + 5, image.size()),
          static_cast<int64_t>(sources.size()), [&](int64_t i) { return sources[i]; }, similarity,
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
               int64_t num_picks) {
  return path == "matrix" ? complete_with_matrix(image, selected, num_picks)
                          : complete_by_steps(image, selected, num_picks);
}

Picks gpu_complete(const std::string& path, const py::array& features, const std::string& scalar,
                   const Picks& selected, int64_t num_picks, const std::vector<bool>& valid,
                   bool backwards) {
  return complete(path, {matrix(features, scalar), valid, backwards}, selected, num_picks);
}

std::tuple<Picks, std::vector<bool>, int64_t> gpu_select(
    const std::string& path, const py::array& features, const std::string& scalar,
    const std::vector<float>& salience, int64_t width, int64_t budget, int64_t num_pivots,
    const std::vector<bool>& valid, bool backwards) {
  const Image image{matrix(features, scalar), valid, backwards};
  const auto per_image = clasp::ImageBudget::of({&budget, 1, width}, {&num_pivots, 1, width}, 0);
  const std::vector<int32_t> best = pivots(image, salience, per_image.pivots, width);
  const Picks selected(best.begin(), best.end());
  const Picks picks = complete(path, image, selected, per_image.tokens - per_image.pivots);

  std::vector<uint32_t> kept(clasp::num_words(image.size()));
  std::vector<uint32_t> pivot(kept.size());
  for (const int64_t n : selected) {
    if (n >= 0) kept[n / 32] |= pivot[n / 32] |= 1U << n % 32;
  }
  for (const int64_t n : picks) kept[n / 32] |= 1U << n % 32;
  Picks indices(width, -2);
  const auto is_pivot = std::make_unique<bool[]>(width);
  int64_t count = -2;
  ScanBlock block(backwards);
  int32_t totals[ScanBlock::kThreads];
  clasp::write_selection(block, kept.data(), pivot.data(), static_cast<int64_t>(kept.size()),
                         totals, {indices.data(), is_pivot.get(), &count, width});
  return {indices, std::vector<bool>(is_pivot.get(), is_pivot.get() + width), count};
}

}  // namespace

void bind_gpu_selection(py::module_& m) {
  m.def("tile_pairs", [](int64_t num_blocks) {
    std::vector<std::pair<int32_t, int32_t>> pairs;
    for (int64_t index = 0; index < clasp::num_tile_pairs(num_blocks); ++index) {
      const clasp::TilePair pair = clasp::tile_pair(index);
      pairs.emplace_back(pair.row, pair.column);
    }
    return pairs;
  });
  m.def("gpu_complete", &gpu_complete);
  m.def("gpu_select", &gpu_select);
}
