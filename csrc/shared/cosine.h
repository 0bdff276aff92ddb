// Cosine similarity with defined results for zero and non-finite vectors.
#pragma once

#include <cmath>

#include "shared/host_device.h"
#include "shared/scalar.h"

namespace clasp {

// The similarity to a zero vector is 0. Any other non-finite similarity becomes +inf, so that such
// a token counts as fully covered and is picked last.
CLASP_HOST_DEVICE inline float cosine(float dot, float norm, float other_norm) {
  const float product = norm * other_norm;
  const bool is_zero = (norm == 0.0F) | (other_norm == 0.0F);
  const float similarity = dot / product;
  const float finite = std::abs(similarity) < infinity() ? similarity : infinity();
  return is_zero ? 0.0F : finite;
}

}  // namespace clasp
