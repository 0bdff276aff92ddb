// What the library says of itself. Plain functions, which Python finds in the loaded library by
// name (ctypes): they need neither torch nor the limited API, and work wherever the library lies.
#include "core/dispatch.h"

#define CLASP_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set in use; null where the one that is forced cannot be.
CLASP_EXPORT const char* clasp_kernels_cpu_capability() {
  return clasp::kCapability.used.name;
}

// Why there is none; empty where there is one.
CLASP_EXPORT const char* clasp_kernels_cpu_capability_problem() {
  return clasp::kCapability.problem.c_str();
}
