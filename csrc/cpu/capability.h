// The kernels of the instruction set in use.
#pragma once

#include "simd/kernels.h"

namespace clasp {

// Throws where what is forced cannot be: to be called before any threads are at work.
const Kernels& best_kernels();

}  // namespace clasp
