#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>

#include "simd/dispatch.h"

namespace {

// Decided when the library is loaded, and not again.
const clasp::Capability kCapability =
    clasp::choose_capability(std::getenv(clasp::kCapabilityVariable));

}  // namespace

const clasp::Kernels& clasp::best_kernels() {
  if (!kCapability.used.kernels) throw std::runtime_error(kCapability.problem);
  return *kCapability.used.kernels;
}

// What the library says of itself. Plain functions, which Python finds in the loaded library by
// name (ctypes): they need neither torch nor the limited API, and work wherever the library lies.

#define CLASP_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set in use; null where the one that is forced cannot be.
CLASP_EXPORT const char* clasp_kernels_cpu_capability() {
  return kCapability.used.name;
}

// Why there is none; empty where there is one.
CLASP_EXPORT const char* clasp_kernels_cpu_capability_problem() {
  return kCapability.problem.c_str();
}
