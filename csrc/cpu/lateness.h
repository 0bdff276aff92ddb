// Whether it pays to call other threads, by how late they came before.
//
// On a machine whose cores are busy with other processes, a thread that is called may not run for
// some milliseconds. The caller has to wait for it, and an algorithm with many short parallel
// regions waits in each of them. So after a long wait the caller works alone for kRest times as
// long as it waited, which bounds what the next attempt can cost to about 1 / kRest of the time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace clasp::cpu {

class Lateness {
 public:
  // Times in nanoseconds. `worked` is what the caller took for its own share of a region, `waited`
  // what it then waited for the others, and `now` when the region ended.
  void observe(int64_t worked, int64_t waited, int64_t now) {
    if (waited <= std::max(kShortest, kShares * worked)) return;
    alone_until_.store(now + kRest * waited, std::memory_order_relaxed);
  }

  bool works_alone(int64_t now) const { return now < alone_until_.load(std::memory_order_relaxed); }

 private:
  // Threads on idle cores wake in less, even from the deepest sleep of a core.
  static constexpr int64_t kShortest = 300'000;
  // Shares are about equal. One that takes this many times the caller's was not running.
  static constexpr int64_t kShares = 2;
  static constexpr int64_t kRest = 20;

  std::atomic<int64_t> alone_until_{0};
};

}  // namespace clasp::cpu
