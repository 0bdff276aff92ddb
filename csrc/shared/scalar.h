// The element types of tensors and their conversions to and from float.
#pragma once

#include <cstdint>
#include <cstring>

#include "shared/host_device.h"

namespace clasp {

enum class Scalar { float32, bfloat16, float16 };

// Two distinct types for 16-bit elements, so that overload resolution tells them apart.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

CLASP_HOST_DEVICE inline int64_t scalar_size(Scalar scalar) {
  return scalar == Scalar::float32 ? 4 : 2;
}

CLASP_HOST_DEVICE inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

CLASP_HOST_DEVICE inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// std::numeric_limits is not available in device code.
CLASP_HOST_DEVICE inline float infinity() {
  return bits_to_float(0x7F800000U);
}

CLASP_HOST_DEVICE inline float to_float(float value) {
  return value;
}

CLASP_HOST_DEVICE inline float to_float(Bfloat16 half) {
  return bits_to_float(uint32_t{half.bits} << 16);
}

// Shifts the bits of a normal number into place and raises the exponent bias from 15 to 127. Inf
// and NaN take the exponent 255 instead. Subnormals are multiples of 2^-24. No operand is a
// subnormal float, which a thread may flush to zero. Branch-free, so that it vectorizes.
CLASP_HOST_DEVICE inline float to_float(Float16 half) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
  return value;
#else
  const uint32_t sign = uint32_t{half.bits & 0x8000U} << 16;
  const uint32_t special = (half.bits & 0x7C00U) == 0x7C00U ? 0x7F800000U : 0U;
  const uint32_t normal = (uint32_t{half.bits & 0x7FFFU} << 13) + 0x38000000U;
  const float units = static_cast<float>(static_cast<int32_t>(half.bits & 0x3FFU)) * 0x1p-24F;
  return bits_to_float(sign | special |
                       ((half.bits & 0x7C00U) == 0 ? float_to_bits(units) : normal));
#endif
}

// Rounds to nearest, ties to even. Every NaN becomes a quiet NaN.
inline Float16 to_float16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  uint32_t half;
  if (magnitude > 0x7F800000U) {
    half = 0x7E00U;
  } else if (magnitude >= 0x47800000U) {  // 2^16 and more; [65520, 2^16) carries to inf below
    half = 0x7C00U;
  } else if (magnitude >= 0x38800000U) {  // 2^-14: normal as float16 too
    half = (magnitude - 0x38000000U + 0xFFFU + (magnitude >> 13 & 1U)) >> 13;
  } else if (magnitude >= 0x33000000U) {  // 2^-25: at least half the smallest subnormal
    const uint32_t shift = 126U - (magnitude >> 23);
    const uint32_t mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
    const uint32_t remainder = mantissa & ((1U << shift) - 1U);
    const uint32_t midway = 1U << (shift - 1);
    half = mantissa >> shift;
    if (remainder > midway || (remainder == midway && (half & 1U) != 0)) ++half;
  } else {
    half = 0;
  }
  return {static_cast<uint16_t>(sign | half)};
}

}  // namespace clasp
