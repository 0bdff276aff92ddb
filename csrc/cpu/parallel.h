// Threads: torch's own pool, over the images of a batch or inside one.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "cpu/capability.h"

namespace clasp::cpu {

inline constexpr auto kSerial = [](int64_t count, const auto& body) { body(0, count); };
inline constexpr auto kParallel = [](int64_t count, const auto& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/1, body);
};
// Blocks of attention's keys are each worth a thread.
inline constexpr auto kParallelBlocks = [](int64_t count, const auto& body) {
  torch::stable::parallel_for(0, count, /*grain_size=*/1, body);
};

// Runs body(image, worker, parallel) for every image: the images in parallel if there are several,
// otherwise with the threads inside the image. A Worker, with its buffers, serves one thread.
template <class Worker, class Body>
void for_each_image(int64_t num_images, const Body& body) {
  const Kernels& kernels = best_kernels();
  if (num_images == 1) {
    Worker worker(kernels);
    body(0, worker, kParallel);
    return;
  }
  torch::stable::parallel_for(0, num_images, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    Worker worker(kernels);
    for (int64_t b = begin; b < end; ++b) body(b, worker, kSerial);
  });
}

}  // namespace clasp::cpu
