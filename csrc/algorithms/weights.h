// The weights of one image's tokens, as greedy algorithms use them.
#pragma once

#include <cstdint>
#include <vector>

#include "shared/weights.h"

namespace clasp {

// Writes the usable weights to `usable`. Leaves it empty if `weights` is null or if all valid
// tokens have the same weight: the picks are then those without weights, to the bit.
template <class Valid>
void usable_weights(const float* weights, int64_t num_tokens, const Valid& valid,
                    std::vector<float>& usable) {
  usable.clear();
  if (!weights) return;
  bool all_equal = true;
  float first = kUnweighted;
  for (int64_t n = 0; n < num_tokens && all_equal; ++n) {
    if (!valid(n)) continue;
    const float weight = usable_weight(weights[n]);
    if (first < 0.0F) first = weight;
    all_equal = weight == first;
  }
  if (all_equal) return;
  usable.resize(num_tokens);
  for (int64_t n = 0; n < num_tokens; ++n) usable[n] = usable_weight(weights[n]);
}

}  // namespace clasp
