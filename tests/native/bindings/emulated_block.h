// A block of GPU threads, one after the other on the host: what runs between two barriers must not
// depend on the order of the threads, so the order can be chosen.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/order.h"

template <int Threads, int ItemCount>
class EmulatedBlock {
 public:
  static constexpr int kThreads = Threads;
  static constexpr int kItems = ItemCount;

  explicit EmulatedBlock(bool backwards) : backwards_(backwards) {}

  template <class T>
  class PerThread {
   public:
    T& at(int thread) { return values_[thread]; }

   private:
    T values_[kThreads];
  };

  template <class T>
  class Items {
   public:
    T& at(int thread, int item) { return values_[thread][item]; }

   private:
    T values_[kThreads][kItems];
  };

  template <class Body>
  void each(const Body& body) const {
    for (int i = 0; i < kThreads; ++i) body(backwards_ ? kThreads - 1 - i : i);
  }

  void sync() const {}

  template <class Key>
  uint64_t minimum(const Key& key) const {
    uint64_t best = clasp::kRetired;
    each([&](int thread) { best = std::min(best, key(thread)); });
    return best;
  }

  template <class Body>
  void each_warp(int32_t first, int32_t last, const Body& body) const {
    for (int32_t i = first; i < last; ++i) body(backwards_ ? first + last - 1 - i : i, true);
  }

  void set_bit(uint32_t* words, int32_t n) const { words[n / 32] |= 1U << n % 32; }

 private:
  bool backwards_;
};
