// What select_tokens.cu asks of CUDA's runtime, of a GPU that begins with the threads of
// SIMT_ORDER.
#pragma once

#include <cstdlib>
#include <string>
#include <tuple>

#include "simt.h"

namespace simt {

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
    launch(num_blocks, num_threads, [&] { kernel(arguments...); }, order());
  };
}

}  // namespace simt

using cudaStream_t = struct SimtStream*;
