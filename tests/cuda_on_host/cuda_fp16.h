#pragma once

#include "core/scalar.h"

using __half = clasp::Float16;
