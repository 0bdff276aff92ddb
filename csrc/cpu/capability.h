// The kernels of the instruction set in use.
#pragma once

#include "simd/kernels.h"

namespace clasp {

// Throws if the forced instruction set is not available. Call it before starting threads.
const Kernels& best_kernels();

}  // namespace clasp
