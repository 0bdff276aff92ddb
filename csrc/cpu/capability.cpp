#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>

#include "simd/dispatch.h"

namespace {

// Chosen once, when the library is loaded.
const clasp::Capability kCapability =
    clasp::choose_capability(std::getenv(clasp::kCapabilityVariable));

}  // namespace

const clasp::Kernels& clasp::best_kernels() {
  if (!kCapability.used.kernels) throw std::runtime_error(kCapability.problem);
  return *kCapability.used.kernels;
}

// Queries for Python, which calls them by name with ctypes. Plain C functions need neither torch
// nor the limited API, and work wherever the library is installed.

#define CLASP_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set in use, or null if the forced one is not available.
CLASP_EXPORT const char* clasp_kernels_cpu_capability() {
  return kCapability.used.name;
}

// The reason why no instruction set is in use, or an empty string.
CLASP_EXPORT const char* clasp_kernels_cpu_capability_problem() {
  return kCapability.problem.c_str();
}
