// Baseline for every machine: 128-bit vector extensions of GCC and Clang (SSE2 or NEON).
#pragma once

#include <cstdint>
#include <cstring>

#include "shared/order.h"
#include "simd/kernels.h"

#if defined(__ARM_NEON)
#  include <arm_neon.h>
#endif

namespace clasp::baseline {

using Vector = float __attribute__((vector_size(16)));
using Bits = uint32_t __attribute__((vector_size(16)));

inline constexpr int64_t kLanes = 4;
inline constexpr int kAccumulators = 12;
inline constexpr int kMostProducts = 8;

inline Vector load(const float* p) {
  Vector x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

template <class Half>
inline Vector load(const Half* p) {
  return Vector{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}

// A pair of bfloat16 becomes two floats by a shift (even elements) and a mask (odd elements), which
// are the lower and upper halves of little-endian words.
inline Vector even_halves(const Bfloat16* p) {
  Bits pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return reinterpret_cast<Vector>(pairs << 16);
}

inline Vector odd_halves(const Bfloat16* p) {
  Bits pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return reinterpret_cast<Vector>(pairs & 0xFFFF0000U);
}

template <class Element>
inline Vector load_first(const Element* p, int64_t count) {
  Element whole[kLanes] = {};
  std::memcpy(whole, p, sizeof(Element) * (count < kLanes ? count : kLanes));
  return load(whole);
}

inline void store(float* p, Vector x) {
  std::memcpy(p, &x, sizeof x);
}

inline void store(Float16* p, Vector x) {
  for (int64_t i = 0; i < kLanes; ++i) p[i] = to_float16(x[i]);
}

template <class Element>
inline void store_first(Element* p, Vector x, int64_t count) {
  Element whole[kLanes];
  store(whole, x);
  std::memcpy(p, whole, sizeof(Element) * (count < kLanes ? count : kLanes));
}

inline void load_pair(const Bfloat16* p, Vector& even, Vector& odd) {
  even = even_halves(p);
  odd = odd_halves(p);
}

inline void load_pair_first(const Bfloat16* p, int64_t count, Vector& even, Vector& odd) {
  Bfloat16 whole[2 * kLanes] = {};
  std::memcpy(whole, p, sizeof(Bfloat16) * count);
  load_pair(whole, even, odd);
}

// The result is in the upper 16 bits of each lane; the lower 16 bits are undefined.
inline Bits rounded_to_bfloat16(Vector x) {
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits is_number = reinterpret_cast<Bits>(x == x);
  const Bits rounded = bits + 0x7FFFU + (bits >> 16 & 1U);
  return (rounded & is_number) | ((bits | 0x00400000U) & ~is_number);
}

inline void store_pair(Bfloat16* p, Vector even, Vector odd) {
  const Bits pair = rounded_to_bfloat16(even) >> 16 | (rounded_to_bfloat16(odd) & 0xFFFF0000U);
  std::memcpy(p, &pair, sizeof pair);
}

inline void store_pair_first(Bfloat16* p, Vector even, Vector odd, int64_t count) {
  Bfloat16 whole[2 * kLanes];
  store_pair(whole, even, odd);
  std::memcpy(p, whole, sizeof(Bfloat16) * count);
}

inline Vector broadcast(float x) {
  return Vector{x, x, x, x};
}

inline Vector multiply(Vector a, Vector b) {
  return a * b;
}

inline Vector divide(Vector a, Vector b) {
  return a / b;
}

inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline Vector add(Vector a, Vector b) {
  return a + b;
}

inline Vector subtract(Vector a, Vector b) {
  return a - b;
}

inline Vector maximum(Vector a, Vector b) {
  return a > b ? a : b;
}

inline float largest(Vector x) {
  const float a = x[0] > x[2] ? x[0] : x[2];
  const float b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}

inline Vector power_of_two(Vector x) {
  return reinterpret_cast<Vector>((reinterpret_cast<Bits>(x) << 23) + 0x3F800000U);
}

inline Vector zero_where_less(Vector x, Vector y, Vector z) {
  return y < z ? Vector{} : x;
}

inline float sum(Vector x) {
  return (x[0] + x[2]) + (x[1] + x[3]);
}

inline Vector sum_each(const Vector* x) {
  return Vector{sum(x[0]), sum(x[1]), sum(x[2]), sum(x[3])};
}

inline void keep_in_register(Vector& x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}

#define CLASP_TARGET
#include "simd/table.inc"
#undef CLASP_TARGET

}  // namespace clasp::baseline
