// The matrix instruction of half precision, by itself, so that tests can put its definition in its
// place.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/scalar.h"

namespace clasp::cuda {

// Sums of 16 rows with 8 columns over 16 features.
template <class T>
__device__ void multiply_add(float (&sums)[4], const uint32_t (&rows)[4],
                             const uint32_t (&columns)[2]) {
#define CLASP_MMA(TYPE)                                                 \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE            \
      ".f32 "                                                           \
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])      \
      : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(columns[0]), "r"(columns[1]))
  if constexpr (std::is_same_v<T, Bfloat16>) {
    CLASP_MMA("bf16");
  } else {
    CLASP_MMA("f16");
  }
#undef CLASP_MMA
}

}  // namespace clasp::cuda
