// Cosine similarity, and what it is where it is not a number.
#pragma once

#include <cmath>

#include "shared/host_device.h"
#include "shared/scalar.h"

namespace clasp {

// A zero vector is similar to nothing. Any other similarity that is not finite is larger than all
// that are, so that such a token never attracts.
CLASP_HOST_DEVICE inline float cosine(float dot, float norm, float other_norm) {
  const float product = norm * other_norm;
  const bool is_zero = (norm == 0.0F) | (other_norm == 0.0F);
  const float similarity = dot / product;
  const float finite = std::abs(similarity) < infinity() ? similarity : infinity();
  return is_zero ? 0.0F : finite;
}

}  // namespace clasp
