// Which instruction sets this machine can run, the kernels for each, and which of them are used.
// Including this compiles every kernel for every set: one file of a library is enough.
#pragma once

#include <string>
#include <vector>

#include "simd/kernels.h"
#include "simd/kernels_avx2.h"
#include "simd/kernels_avx512.h"
#include "simd/kernels_avx512_bf16.h"
#include "simd/kernels_baseline.h"

#if defined(__x86_64__)
#  include <cpuid.h>
#endif

namespace clasp {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

#if defined(__x86_64__)
// Older compilers do not know this name in __builtin_cpu_supports; AVX2 machines without it are
// emulated ones.
inline bool cpu_has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// Best first; the baseline is always there.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512bf16")) {
      found.push_back({"avx512_bf16", &avx512_bf16::kKernels});
    }
    found.push_back({"avx512", &avx512::kKernels});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c()) {
    found.push_back({"avx2", &avx2::kKernels});
  }
#endif
  found.push_back({"baseline", &baseline::kKernels});
  return found;
}

// The best instruction set, or the one that the environment forces.
inline constexpr const char* kCapabilityVariable = "CLASP_KERNELS_CPU_CAPABILITY";

struct Capability {
  InstructionSet used;  // without kernels where what is forced cannot be
  std::string problem;
};

// `forced` is the variable's value, null if it is not set.
inline Capability choose_capability(const char* forced) {
  const std::vector<InstructionSet> available = instruction_sets();
  const std::string name = forced ? forced : "";
  if (name.empty()) return {available.front(), ""};
  std::string allowed;
  for (const InstructionSet& set : available) {
    if (name == set.name) return {set, ""};
    allowed += (allowed.empty() ? "" : ", ") + std::string(set.name);
  }
  return {{nullptr, nullptr},
          std::string(kCapabilityVariable) + " must be one of " + allowed +
              " on this machine, got '" + name + "'."};
}

}  // namespace clasp
