// Which instruction sets this machine can run, and the kernels for each.
#pragma once

#include <vector>

#include "core/kernels.h"
#include "core/kernels_avx2.h"
#include "core/kernels_avx512.h"
#include "core/kernels_baseline.h"

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
    found.push_back({"avx512", &avx512::kKernels});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c()) {
    found.push_back({"avx2", &avx2::kKernels});
  }
#endif
  found.push_back({"baseline", &baseline::kKernels});
  return found;
}

inline const Kernels& best_kernels() {
  static const Kernels& best = *instruction_sets().front().kernels;
  return best;
}

}  // namespace clasp
