// The instruction sets of this machine, the kernels for each, and the choice between them.
// Including this header compiles every kernel for every set, so include it in one file per library.
// Tests that run on a machine without AVX-512 leave it out by CLASP_WITHOUT_AVX512, for time.
#pragma once

#include <string>
#include <vector>

#include "simd/kernels.h"
#include "simd/kernels_avx2.h"
#include "simd/kernels_baseline.h"

#if !defined(CLASP_WITHOUT_AVX512)
#  include "simd/kernels_avx512.h"
#  include "simd/kernels_avx512_bf16.h"
#endif
#if defined(__x86_64__)
#  include <cpuid.h>
#endif

namespace clasp {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
};

#if defined(__x86_64__)
// Older compilers do not accept "f16c" in __builtin_cpu_supports. Only emulated machines have AVX2
// without F16C.
inline bool cpu_has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// Best first. The baseline is always available.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
#  if !defined(CLASP_WITHOUT_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512bf16")) {
      found.push_back({"avx512_bf16", &avx512_bf16::kKernels});
    }
    found.push_back({"avx512", &avx512::kKernels});
  }
#  endif
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c()) {
    found.push_back({"avx2", &avx2::kKernels});
  }
#endif
  found.push_back({"baseline", &baseline::kKernels});
  return found;
}

// Environment variable that forces an instruction set; the best one is used if it is not set.
inline constexpr const char* kCapabilityVariable = "CLASP_KERNELS_CPU_CAPABILITY";

struct Capability {
  InstructionSet used;  // kernels is null if the forced set is not available
  std::string problem;
};

// `forced` is the value of the environment variable, or null if it is not set.
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
