// The arithmetic that depends on the instruction set: dot products and widening to float32. Which
// set is used is decided at run time, so that one build runs on every machine.
//
// Only the functions marked with a target attribute may contain instructions beyond the baseline,
// and they call nothing but intrinsics: an inline library function compiled for AVX-512 here could
// otherwise be the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>
#include <cstring>

namespace clasp {

struct Kernels {
  // dots[r] = the dot product of `token` and rows[r], both of `dim` float32. The order of
  // summation depends on nothing but `dim`: the same pair of vectors gives the same bits whatever
  // it is batched with.
  void (*dots)(const float* token, const float* const* rows, int64_t num_rows, int64_t dim,
               float* dots);
  void (*widen_bfloat16)(const uint16_t* source, int64_t count, float* target);
  void (*widen_float16)(const uint16_t* source, int64_t count, float* target);
};

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float bfloat16_to_float(uint16_t half) {
  return bits_to_float(uint32_t{half} << 16);
}

// Exponent and mantissa move into place with the exponent still biased for 5 bits; multiplying by
// 2^112 corrects the bias and makes subnormals normal in one exact step. Inf and NaN, whose
// exponent has no successor, are patched up. Free of branches, so that it vectorises.
inline float float16_to_float(uint16_t half) {
  const uint32_t magnitude = uint32_t{half & 0x7FFFU} << 13;
  const uint32_t sign = uint32_t{half & 0x8000U} << 16;
  uint32_t bits;
  const float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000U);
  std::memcpy(&bits, &scaled, sizeof bits);
  const uint32_t special = (half & 0x7C00U) == 0x7C00U ? 0x7F800000U : 0U;
  return bits_to_float(sign | bits | special);
}

}  // namespace clasp
