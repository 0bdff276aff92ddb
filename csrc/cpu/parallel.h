// Parallel loops on torch's thread pool, over the images of a batch or within one image.
#pragma once

#include <time.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>

#include "cpu/capability.h"
#include "cpu/lateness.h"
#include "cpu/subnormals.h"

namespace clasp::cpu {

inline int64_t nanoseconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}
inline int64_t now_in_nanoseconds() {
  return nanoseconds(CLOCK_MONOTONIC);
}
// The time for which this thread has been running.
inline int64_t running_in_nanoseconds() {
  return nanoseconds(CLOCK_THREAD_CPUTIME_ID);
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
  int64_t caller_began = start;
  int64_t caller_finished = start;
  std::atomic<int64_t> longest_run = 0;  // of the other threads, in their shares
  std::exception_ptr error;
  std::mutex mutex;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const KeepSubnormals keep;
    const bool is_caller = std::this_thread::get_id() == caller;
    const int64_t ran_before = is_caller ? 0 : running_in_nanoseconds();
    if (is_caller) caller_began = now_in_nanoseconds();
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
    if (is_caller) {
      caller_finished = now_in_nanoseconds();
    } else {
      raise_to(longest_run, running_in_nanoseconds() - ran_before);
    }
  });
  const int64_t end = now_in_nanoseconds();
  // The caller waits before its share too, if another thread has not left the loop before yet.
  const int64_t ran = caller_finished - caller_began;
  lateness.observe(end - start - ran, end - start - longest_run, end);
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
