// Parallel loops on torch's thread pool, over the images of a batch or within one image.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>

#include "cpu/capability.h"
#include "cpu/lateness.h"
#include "cpu/subnormals.h"

namespace clasp::cpu {

inline int64_t now_in_nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

inline void raise_to(std::atomic<int64_t>& most, int64_t value) {
  int64_t seen = most.load();
  while (seen < value && !most.compare_exchange_weak(seen, value)) {
  }
}

// One for the process: all of its threads meet the same load.
inline Lateness lateness;

// Runs body(begin, end) over ranges that cover 0..count, at most one for every `grain` items,
// rounded up. Rethrows the first exception of a body, because torch would lose its type and
// message.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  const int64_t start = now_in_nanoseconds();
  if (lateness.works_alone(start)) {
    const KeepSubnormals keep;
    if (count > 0) body(0, count);
    return;
  }
  const std::thread::id caller = std::this_thread::get_id();
  int64_t caller_finished = start;
  std::atomic<int64_t> last_began = start;  // the latest of the other threads
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const KeepSubnormals keep;
    const bool is_caller = std::this_thread::get_id() == caller;
    if (!is_caller) raise_to(last_began, now_in_nanoseconds());
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
    if (is_caller) caller_finished = now_in_nanoseconds();
  });
  const int64_t end = now_in_nanoseconds();
  lateness.observe(end - caller_finished, last_began - start, end);
  if (error) std::rethrow_exception(error);
}

// The grain of a memory-bound loop that reads `item_bytes` per item. With fewer items, waking a
// thread costs more than it saves.
inline int64_t grain_of_bytes(int64_t item_bytes) {
  constexpr int64_t kGrainBytes = 128 * 1024;
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, item_bytes));
}

inline constexpr auto kSerial = [](int64_t count, const auto& body) { body(0, count); };
inline constexpr auto kParallel = [](int64_t count, const auto& body) {
  parallel_for(count, /*grain=*/1, body);
};

// Runs body(image, worker, parallel) for every image. Several images run in parallel; a single
// image uses the threads within it. Each Worker, with its buffers, is used by one thread only.
template <class Worker, class Body>
void for_each_image(int64_t num_images, const Body& body) {
  const Kernels& kernels = best_kernels();
  if (num_images == 1) {
    const KeepSubnormals keep;
    Worker worker(kernels);
    body(0, worker, kParallel);
    return;
  }
  parallel_for(num_images, /*grain=*/1, [&](int64_t begin, int64_t end) {
    Worker worker(kernels);
    for (int64_t b = begin; b < end; ++b) body(b, worker, kSerial);
  });
}

}  // namespace clasp::cpu
