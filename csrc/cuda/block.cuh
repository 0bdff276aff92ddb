// A thread block as the algorithms of block_*.cuh use it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "shared/order.h"

namespace clasp::cuda {

inline constexpr int kWarpSize = 32;

__device__ inline uint64_t warp_minimum(uint64_t key) {
  const auto high = static_cast<uint32_t>(key >> 32);
  const uint32_t best = __reduce_min_sync(0xFFFFFFFFU, high);
  const uint32_t low = high == best ? static_cast<uint32_t>(key) : 0xFFFFFFFFU;
  return uint64_t{best} << 32 | __reduce_min_sync(0xFFFFFFFFU, low);
}

template <int Threads, int ItemCount>
class Block {
 public:
  static constexpr int kThreads = Threads;
  static constexpr int kItems = ItemCount;
  static constexpr int kWarps = kThreads / kWarpSize;

  // Double-buffered: a warp that has reached the next minimum must not overwrite keys that other
  // warps still read.
  struct Shared {
    uint64_t keys[2][kWarps];
  };

  // For algorithms that do not call minimum().
  Block() = default;
  __device__ explicit Block(Shared& shared) : shared_(&shared) {}

  // Values in registers. `thread` is always the calling thread. Loops over items have to be
  // unrolled, so that `item` is a constant.
  template <class T>
  class PerThread {
   public:
    __device__ T& at(int) { return value_; }

   private:
    T value_;
  };

  template <class T>
  class Items {
   public:
    __device__ T& at(int, int item) { return values_[item]; }

   private:
    T values_[kItems];
  };

  template <class Body>
  __device__ void each(const Body& body) const {
    body(static_cast<int>(threadIdx.x));
  }

  __device__ void sync() const { __syncthreads(); }

  // The minimum over all threads. Also acts as a barrier.
  template <class Key>
  __device__ uint64_t minimum(const Key& key) {
    const uint64_t own = warp_minimum(key(static_cast<int>(threadIdx.x)));
    uint64_t* keys = shared_->keys[turn_];
    turn_ = 1 - turn_;
    if (threadIdx.x % kWarpSize == 0) keys[threadIdx.x / kWarpSize] = own;
    __syncthreads();
    uint64_t best = keys[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) best = keys[warp] < best ? keys[warp] : best;
    return best;
  }

  // Runs body(i, is_leader) with one i per warp, so that the body may use warp collectives.
  template <class Body>
  __device__ void each_warp(int32_t first, int32_t last, const Body& body) const {
    const int thread = static_cast<int>(threadIdx.x);
    for (int32_t i = first + thread / kWarpSize; i < last; i += kWarps) {
      body(i, thread % kWarpSize == 0);
    }
  }

  __device__ void set_bit(uint32_t* words, int32_t n) const {
    atomicOr(words + n / 32, 1U << n % 32);
  }

 private:
  Shared* shared_ = nullptr;
  int turn_ = 0;
};

}  // namespace clasp::cuda
