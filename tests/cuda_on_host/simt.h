// Runs CUDA kernels on the host: every thread of a block is a fiber, and blocks run one at a time.
//
// This header emulates the CUDA names. A fiber runs until it has to wait for others of its warp or
// block. It runs as far ahead of them as possible, so that a missing barrier shows. The order of
// blocks and the order in which fibers resume are configurable, because a kernel must not depend on
// them. A deadlock is detected and ends the process with a message.
//
// Shared memory is thread-local memory and is filled with NaN when a block starts. The target of an
// asynchronous copy is filled with NaN until the copy is waited for. Addresses must be aligned as
// the hardware requires.
#pragma once

#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "races.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local

using std::memcpy;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace simt {

enum class Order { forwards, backwards, shuffled };

inline constexpr int kWarp = 32;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

inline void check_alignment(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("an address is not aligned");
}

// A barrier for a set of fibers.
struct Meeting {
  int members = 0;
  int arrived = 0;
  int64_t generation = 0;
};

struct Copy {
  void* to;
  const void* from;
  size_t size;
  size_t zeros;  // bytes at the end that are zero-filled
};

struct Fiber {
  static constexpr size_t kStackBytes = 256 << 10;

  bool is_waiting() const { return meeting != nullptr && meeting->generation == generation; }

  ucontext_t context;  // for the first start; later switches use jumps, which need no system call
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  // State within the current block:
  bool done = false;
  const Meeting* meeting = nullptr;  // the barrier it waits at, and that barrier's generation
  int64_t generation = 0;
  races::Thread identity;
  std::vector<Copy> copies;               // not committed
  std::vector<std::vector<Copy>> groups;  // committed, not yet complete
};

// One fiber per thread of the largest block so far. Fibers are reused between blocks, because
// creating one takes longer than most kernels here.
inline std::vector<std::unique_ptr<Fiber>> fibers;

class Block {
 public:
  Block(unsigned index, int num_threads, Order order)
      : index(index), order_(order), random_(index) {
    if (num_threads % kWarp != 0) fail("a block has a part of a warp");
    everyone.members = num_threads;
    warps.resize(num_threads / kWarp);
    for (auto& warp : warps) warp.members = kWarp;
    exchange.resize(num_threads);
    while (static_cast<int>(fibers.size()) < num_threads) {
      fibers.push_back(std::make_unique<Fiber>());
    }
  }

  void run(const std::function<void()>& kernel) {
    kernel_ = &kernel;
    const int count = everyone.members;
    for (int thread = 0; thread < count; ++thread) {
      Fiber& fiber = *fibers[thread];
      fiber.done = false;
      fiber.meeting = nullptr;
      fiber.copies.clear();
      fiber.groups.clear();
      fiber.identity = {.block = static_cast<int>(index),
                        .warp = thread / kWarp,
                        .lane = thread % kWarp,
                        .barriers = 0,
                        .stack = fiber.stack.get(),
                        .stack_bytes = Fiber::kStackBytes};
    }
    std::vector<int> order(count);
    for (int i = 0; i < count; ++i) order[i] = order_ == Order::backwards ? count - 1 - i : i;
    int left = count;
    // Runs the warps one after the other, or all threads at once if shuffled.
    const int group = order_ == Order::shuffled ? count : kWarp;
    const auto step = [&](int first) {
      if (order_ == Order::shuffled) std::shuffle(order.begin(), order.end(), random_);
      for (int i = first; i < first + group; ++i) {
        const Fiber& fiber = *fibers[order[i]];
        if (fiber.done || fiber.is_waiting()) continue;
        resume(order[i]);
        if (fiber.done) --left, ++progress;
      }
    };
    while (left > 0) {
      const int64_t before = progress;
      for (int first = 0; first < count; first += group) {
        for (int64_t seen = -1; seen != progress;) {
          seen = progress;
          step(first);
        }
      }
      if (progress == before) fail("deadlock: threads wait for others that never arrive");
    }
  }

  void wait(Meeting& meeting) {
    [[maybe_unused]] const races::Paused paused;
    ++progress;
    if (++meeting.arrived == meeting.members) {
      meeting.arrived = 0;
      ++meeting.generation;
      return;
    }
    fiber().meeting = &meeting;
    fiber().generation = meeting.generation;
    yield();
  }

  Fiber& fiber() { return *fibers[current]; }
  Meeting& warp() { return warps[current / kWarp]; }
  // Calls `use` with a function that maps a lane of this warp to the value of that lane.
  template <class T, class Use>
  void with_all_lanes(const T& own, const Use& use) {
    [[maybe_unused]] const races::Paused paused;
    static_assert(sizeof(T) <= sizeof(Slot));
    memcpy(&exchange[current], &own, sizeof(T));
    wait(warp());
    const Slot* first = &exchange[current / kWarp * kWarp];
    use([first](int lane) -> const T& { return *reinterpret_cast<const T*>(first + lane); });
    wait(warp());
  }

  unsigned index;
  int current = 0;
  int64_t progress = 0;
  Meeting everyone;
  std::vector<Meeting> warps;
  struct alignas(64) Slot {
    std::byte bytes[64];
  };
  std::vector<Slot> exchange;

 private:
  static void enter();

  void yield() {
    if (_setjmp(fiber().place) == 0) _longjmp(scheduler_, 1);
  }

  // Runs the fiber until it waits or ends.
  [[gnu::noinline]] void resume(int thread) {
    current = thread;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber().begun) _longjmp(fiber().place, 1);
    fiber().begun = true;
    getcontext(&fiber().context);
    fiber().context.uc_stack.ss_sp = fiber().stack.get();
    fiber().context.uc_stack.ss_size = Fiber::kStackBytes;
    makecontext(&fiber().context, &Block::enter, 0);
    setcontext(&fiber().context);
  }

  Order order_;
  std::mt19937 random_;
  const std::function<void()>* kernel_ = nullptr;
  jmp_buf scheduler_;
};

inline Block* block = nullptr;  // the running block; blocks run one at a time
// A variable in the module's thread-local memory, by which that memory is found.
inline thread_local std::byte landmark;

// Fills all thread-local memory of this module in the calling thread with NaN.
inline void poison_shared_memory() {
  const auto poison = [](dl_phdr_info* info, size_t, void*) {
    const auto* mark = reinterpret_cast<std::byte*>(&landmark);
    auto* first = static_cast<std::byte*>(info->dlpi_tls_data);
    for (int i = 0; i < info->dlpi_phnum && first != nullptr; ++i) {
      const auto& header = info->dlpi_phdr[i];
      if (header.p_type != PT_TLS || mark < first || mark >= first + header.p_memsz) continue;
      std::memset(first, 0xFF, header.p_memsz);
      races::run(nullptr);
      races::forget(first, header.p_memsz);
      return 1;
    }
    return 0;
  };
  if (dl_iterate_phdr(poison, nullptr) == 0) fail("there is no shared memory");
}

// The main function of a fiber: runs the kernel once per block. Local variables must not carry
// state from one block to the next.
inline void Block::enter() {
  for (;;) {
    races::run(&block->fiber().identity);
    (*block->kernel_)();
    races::run(nullptr);
    block->fiber().done = true;
    block->yield();
  }
}

// Calls `kernel` for every thread of the grid. Runs in a new system thread, so that thread-local
// memory of other users of the module is not overwritten.
inline void launch(unsigned num_blocks, int num_threads, const std::function<void()>& kernel,
                   Order order) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  races::forget_all();
  std::vector<unsigned> indices(num_blocks);
  std::iota(indices.begin(), indices.end(), 0U);
  if (order == Order::backwards) std::reverse(indices.begin(), indices.end());
  if (order == Order::shuffled) std::shuffle(indices.begin(), indices.end(), std::mt19937());
  std::thread([&] {
    for (const unsigned index : indices) {
      poison_shared_memory();
      Block own(index, num_threads, order);
      block = &own;
      own.run(kernel);
    }
  }).join();
}

struct ThreadIndex {
  struct {
    [[gnu::no_sanitize("thread")]] operator unsigned() const {
      return static_cast<unsigned>(block->current);
    }
  } x;
};
struct BlockIndex {
  struct {
    [[gnu::no_sanitize("thread")]] operator unsigned() const { return block->index; }
  } x;
};

}  // namespace simt

inline constexpr simt::ThreadIndex threadIdx;
inline constexpr simt::BlockIndex blockIdx;

inline void __syncthreads() {
  [[maybe_unused]] const simt::races::Paused paused;
  simt::block->wait(simt::block->everyone);
  ++simt::block->fiber().identity.barriers;
}
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  float other;
  simt::block->with_all_lanes(
      value, [&](const auto& lanes) { other = lanes(simt::block->current % simt::kWarp ^ mask); });
  return other;
}
inline uint32_t __reduce_min_sync(unsigned, uint32_t value) {
  uint32_t least = value;
  simt::block->with_all_lanes(value, [&](const auto& lanes) {
    for (int lane = 0; lane < simt::kWarp; ++lane) least = std::min(least, lanes(lane));
  });
  return least;
}

template <class T>
T atomicOr(T* target, T value) {
  return std::atomic_ref(*target).fetch_or(value);
}
template <class T>
T atomicMin(T* target, T value) {
  std::atomic_ref reference(*target);
  T old = reference.load();
  while (value < old && !reference.compare_exchange_weak(old, value)) {
  }
  return old;
}
