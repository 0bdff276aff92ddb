#pragma once

#include "core/scalar.h"

using __nv_bfloat16 = clasp::Bfloat16;
