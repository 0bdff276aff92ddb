// The arithmetic that depends on the instruction set: dot products and widening to float32. Which
// set is used is decided at run time, so that one build runs on every machine.
//
// The instructions come from function attributes, never from a compiler flag for a whole file: an
// inline library function compiled for AVX-512 in one file could be the copy that the linker keeps
// for all of them.
#pragma once

#include <cstdint>
#include <cstring>

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

// Normal numbers are moved into place and the exponent's bias raised from 15 to 127; Inf and NaN,
// whose exponent has no successor, are patched up. Subnormals count in units of 2^-24. No operand
// is a subnormal float, which a thread that flushes those to zero would lose. Free of branches, so
// that it vectorises.
inline float float16_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000U} << 16;
  const uint32_t special = (half & 0x7C00U) == 0x7C00U ? 0x7F800000U : 0U;
  const uint32_t normal = (uint32_t{half & 0x7FFFU} << 13) + 0x38000000U;
  const float units = static_cast<float>(static_cast<int32_t>(half & 0x3FFU)) * 0x1p-24F;
  uint32_t subnormal;
  std::memcpy(&subnormal, &units, sizeof subnormal);
  return bits_to_float(sign | special | ((half & 0x7C00U) == 0 ? subnormal : normal));
}

}  // namespace clasp
