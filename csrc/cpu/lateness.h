// Decides whether to call other threads, by how late they were before.
//
// On a machine whose cores are busy with other processes, a thread may not run for some
// milliseconds after it is called. The caller has to wait for it, and an algorithm with many short
// parallel regions waits in each of them. After a long wait, the caller therefore works alone for
// kRest times as long as it waited. If the next wait is no longer, waiting takes about 1 / kRest of
// the time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace clasp::cpu {

class Lateness {
 public:
  // Records a parallel region; times in nanoseconds. `waited` is how long the caller waited for
  // other threads, before its own share and after it. `late` is how much longer the region took
  // than the longest run of another thread. If that thread ran all the time, nobody was late: its
  // share was larger.
  void observe(int64_t waited, int64_t late, int64_t now) {
    const int64_t lost = std::min(waited, late);
    if (lost <= kShortest) return;
    alone_until_.store(now + kRest * lost, std::memory_order_relaxed);
  }

  bool works_alone(int64_t now) const { return now < alone_until_.load(std::memory_order_relaxed); }

 private:
  // Two threads on idle cores wake in less, even from the deepest sleep of a core.
  static constexpr int64_t kShortest = 300'000;
  static constexpr int64_t kRest = 20;

  std::atomic<int64_t> alone_until_{0};
};

}  // namespace clasp::cpu
