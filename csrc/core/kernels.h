// The loops that depend on the instruction set, behind function pointers. Which set is used is
// decided at run time, so that one build runs on every machine.
//
// The instructions come from function attributes, never from a compiler flag for a whole file: an
// inline library function compiled for AVX-512 in one file could be the copy that the linker keeps
// for all of them.
#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace clasp {

// A tile is at most this many tokens wide: as many as share each load of a row.
inline constexpr int64_t kTileTokens = 4;

struct Kernels {
  // dots[t * num_rows + r] = the dot product of tokens[t] and rows[r], all of `dim` float32;
  // num_tokens is at most kTileTokens. The order of summation depends on nothing but `dim`: the
  // same two vectors give the same bits whatever tile they are in.
  void (*tile)(const float* const* tokens, int64_t num_tokens, const float* const* rows,
               int64_t num_rows, int64_t dim, float* dots);
  // squares[t] = the dot product of tokens[t] with itself, summed in the same order.
  void (*squares)(const float* const* tokens, int64_t num_tokens, int64_t dim, float* squares);
  void (*widen_bfloat16)(const Bfloat16* source, int64_t count, float* target);
  void (*widen_float16)(const Float16* source, int64_t count, float* target);
};

}  // namespace clasp
