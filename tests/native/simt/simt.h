// CUDA kernels on the host: every thread of a block is a fiber, and blocks run one after the other.
//
// This header comes before any other and gives the words of CUDA their meaning. A fiber runs until
// it has to wait for others of its warp or block, as far ahead of them as it can come, so that a
// barrier that is missing shows. The order in which fibers are resumed can be chosen, as a kernel
// must not depend on it. What waits forever is found and ends the process with a message.
//
// Shared memory is thread-local memory, full of NaN when a block starts. So is what an
// asynchronous copy writes to from when it begins until it is waited for. Addresses must be aligned
// as the hardware asks for.
#pragma once

#include <link.h>
#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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

// Where fibers meet.
struct Meeting {
  int members = 0;
  int arrived = 0;
  int64_t generation = 0;
};

struct Copy {
  void* to;
  const void* from;
  size_t size;
  size_t zeros;  // at its end
};

// Stacks that fibers had, for others: fresh memory costs more than most kernels here.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 << 10;
  using Stack = std::unique_ptr<std::byte[]>;

  Stack take() {
    if (free_.empty()) return std::make_unique_for_overwrite<std::byte[]>(kBytes);
    Stack stack = std::move(free_.back());
    free_.pop_back();
    return stack;
  }

  void give(Stack stack) { free_.push_back(std::move(stack)); }

 private:
  std::vector<Stack> free_;
};

inline Stacks stacks;

struct Fiber {
  ucontext_t context;  // to begin with; from then on jumps are cheaper, as they ask no system
  jmp_buf place;
  bool begun = false;
  Stacks::Stack stack;
  bool done = false;
  races::Thread identity;
  std::vector<Copy> copies;               // not committed
  std::vector<std::vector<Copy>> groups;  // committed, not arrived
};

class Block {
 public:
  Block(unsigned index, int num_threads, Order order)
      : index(index), order_(order), random_(index) {
    if (num_threads % kWarp != 0) fail("a block has a part of a warp");
    everyone.members = num_threads;
    warps.resize(num_threads / kWarp);
    for (auto& warp : warps) warp.members = kWarp;
    exchange.resize(num_threads);
    fibers_ = std::vector<Fiber>(num_threads);
  }

  void run(const std::function<void()>& kernel) {
    kernel_ = &kernel;
    for (Fiber& fiber : fibers_) {
      fiber.stack = stacks.take();
      const auto thread = static_cast<int>(&fiber - fibers_.data());
      fiber.identity = {.block = static_cast<int>(index),
                        .warp = thread / kWarp,
                        .lane = thread % kWarp,
                        .barriers = {},
                        .stack = fiber.stack.get(),
                        .stack_bytes = Stacks::kBytes};
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = Stacks::kBytes;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    const auto count = static_cast<int>(fibers_.size());
    std::vector<int> order(count);
    for (int i = 0; i < count; ++i) order[i] = order_ == Order::backwards ? count - 1 - i : i;
    int left = count;
    // Warps one after the other; or, shuffled, all of them at once.
    const int group = order_ == Order::shuffled ? count : kWarp;
    const auto step = [&](int first) {
      if (order_ == Order::shuffled) std::shuffle(order.begin(), order.end(), random_);
      for (int i = first; i < first + group; ++i) {
        if (fibers_[order[i]].done) continue;
        resume(order[i]);
        if (fibers_[order[i]].done) --left, ++progress;
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
      if (progress == before) fail("threads wait for others that never come");
    }
    for (Fiber& fiber : fibers_) stacks.give(std::move(fiber.stack));
  }

  void wait(Meeting& meeting) {
    [[maybe_unused]] const races::Paused paused;
    const int64_t generation = meeting.generation;
    ++progress;
    if (++meeting.arrived == meeting.members) {
      meeting.arrived = 0;
      ++meeting.generation;
      return;
    }
    while (meeting.generation == generation) yield();
  }

  Fiber& fiber() { return fibers_[current]; }
  Meeting& warp() { return warps[current / kWarp]; }
  // What each lane of this thread's warp gave: to be read before the warp meets again.
  template <class T>
  std::array<T, kWarp> all_lanes(const T& own) {
    [[maybe_unused]] const races::Paused paused;
    static_assert(sizeof(T) <= sizeof(Slot));
    memcpy(&exchange[current], &own, sizeof(T));
    wait(warp());
    std::array<T, kWarp> values;
    for (int lane = 0; lane < kWarp; ++lane) {
      memcpy(&values[lane], &exchange[current / kWarp * kWarp + lane], sizeof(T));
    }
    wait(warp());
    return values;
  }

  unsigned index;
  int current = 0;
  int64_t progress = 0;
  Meeting everyone;
  std::vector<Meeting> warps;
  struct Slot {
    std::byte bytes[64];
  };
  std::vector<Slot> exchange;

 private:
  static void enter();

  void yield() {
    if (_setjmp(fiber().place) == 0) _longjmp(scheduler_, 1);
  }

  // Until it waits, or ends.
  [[gnu::noinline]] void resume(int thread) {
    current = thread;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber().begun) _longjmp(fiber().place, 1);
    fiber().begun = true;
    setcontext(&fiber().context);
  }

  Order order_;
  std::mt19937 random_;
  const std::function<void()>* kernel_ = nullptr;
  jmp_buf scheduler_;
  std::vector<Fiber> fibers_;
};

inline thread_local Block* block = nullptr;
// Something in the memory that a thread has to itself, to find the rest of it.
inline thread_local std::byte landmark;

// All memory of its own that this module has in the calling thread.
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

inline void Block::enter() {
  Block* own = block;
  races::run(&own->fiber().identity);
  (*own->kernel_)();
  races::run(nullptr);
  own->fiber().done = true;
  _longjmp(own->scheduler_, 1);
}

// `kernel` is called by every thread of the grid. In a thread of the system, because what the
// module keeps in thread-local memory for others must not be overwritten.
inline void launch(unsigned num_blocks, int num_threads, const std::function<void()>& kernel,
                   Order order = Order::forwards) {
  races::forget_all();
  std::thread([&] {
    for (unsigned index = 0; index < num_blocks; ++index) {
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
  ++simt::block->fiber().identity.barriers.block;
}
inline void __syncwarp() {
  [[maybe_unused]] const simt::races::Paused paused;
  simt::block->wait(simt::block->warp());
  ++simt::block->fiber().identity.barriers.warp;
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  return simt::block->all_lanes(value)[simt::block->current % simt::kWarp ^ mask];
}
inline uint32_t __reduce_min_sync(unsigned, uint32_t value) {
  uint32_t least = value;
  for (const uint32_t other : simt::block->all_lanes(value)) least = std::min(least, other);
  return least;
}
inline int __popc(unsigned bits) {
  return std::popcount(bits);
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
