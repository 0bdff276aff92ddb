#pragma once

#include "shared/scalar.h"

using __nv_bfloat16 = clasp::Bfloat16;
