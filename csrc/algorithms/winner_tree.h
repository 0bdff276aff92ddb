// A tournament tree over N keys: the root holds the best key, and an update takes O(log N).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shared/order.h"

namespace clasp {

class WinnerTree {
 public:
  void reset(int64_t num_keys) {
    num_leaves_ = 1;
    while (num_leaves_ < num_keys) num_leaves_ *= 2;
    nodes_.assign(static_cast<size_t>(2 * num_leaves_), kRetired);
  }

  uint64_t leaf(int64_t index) const { return nodes_[num_leaves_ + index]; }

  // Sets a key without updating its ancestors; call play_all() after the last set_leaf().
  void set_leaf(int64_t index, uint64_t key) { nodes_[num_leaves_ + index] = key; }

  void play_all() {
    for (int64_t node = num_leaves_ - 1; node > 0; --node) play(node);
  }

  void update(int64_t index, uint64_t key) {
    set_leaf(index, key);
    for (int64_t node = (num_leaves_ + index) / 2; node > 0; node /= 2) play(node);
  }

  uint64_t best() const { return nodes_[1]; }

  // Returns the best key other than that of `index`: the best sibling on the path to the root.
  uint64_t best_other_than(int64_t index) const {
    uint64_t best = kRetired;
    for (int64_t node = num_leaves_ + index; node > 1; node /= 2) {
      best = std::min(best, nodes_[node ^ 1]);
    }
    return best;
  }

 private:
  void play(int64_t node) { nodes_[node] = std::min(nodes_[2 * node], nodes_[2 * node + 1]); }

  int64_t num_leaves_ = 1;
  std::vector<uint64_t> nodes_;  // the children of node i are 2i and 2i + 1; the leaves come last
};

}  // namespace clasp
