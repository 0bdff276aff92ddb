#pragma once

#include "shared/scalar.h"

using __half = clasp::Float16;
