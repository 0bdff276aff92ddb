// What select_tokens.cu asks of CUDA's runtime, of a GPU that SIMT_MULTIPROCESSORS and
// SIMT_LARGEST_CLUSTER describe (0: none) and that begins with the threads of SIMT_ORDER.
#pragma once

#include <cstdlib>
#include <string>
#include <tuple>

#include "simt.h"

namespace simt {

inline int setting(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

inline Order order() {
  const char* value = std::getenv("SIMT_ORDER");
  const std::string name = value == nullptr ? "forwards" : value;
  return name == "backwards"  ? Order::backwards
         : name == "shuffled" ? Order::shuffled
                              : Order::forwards;
}

// In place of kernel<<<blocks, threads>>>.
template <class... Parameters>
auto on_grid(void (*kernel)(Parameters...), unsigned num_blocks, int num_threads) {
  return [=](auto... arguments) {
    if (num_blocks == 0) fail("an empty grid");
    launch(num_blocks, num_threads, [&] { kernel(arguments...); }, 1, order());
  };
}

}  // namespace simt

using cudaStream_t = struct SimtStream*;
using cudaError_t = int;

inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr cudaError_t cudaErrorInvalidClusterSize = 912;

inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrClusterLaunch, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x) : x(x) {}
};
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim = 0, blockDim = 0;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? simt::setting("SIMT_MULTIPROCESSORS", 132)
               : simt::setting("SIMT_LARGEST_CLUSTER", 16) > 0;
  return 0;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = 90;
  return 0;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return 0;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*,
                                                  const cudaLaunchConfig_t* config) {
  const auto blocks = static_cast<int>(config->attrs->val.clusterDim.x);
  *count = 1;
  return blocks <= simt::setting("SIMT_LARGEST_CLUSTER", 16) ? cudaSuccess
                                                             : cudaErrorInvalidClusterSize;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  if (config->gridDim.x == 0) simt::fail("an empty grid");
  const int cluster = config->numAttrs == 0 ? 1 : static_cast<int>(config->attrs->val.clusterDim.x);
  simt::launch(
      config->gridDim.x, static_cast<int>(config->blockDim.x), [&] { kernel(arguments...); },
      cluster, simt::order());
  return 0;
}
