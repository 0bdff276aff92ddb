// CUDA kernels on the host: every thread of a block is a fiber, blocks are threads of the system.
//
// This header comes before any other and gives the words of CUDA their meaning. A fiber runs until
// it has to wait for others of its warp, block or cluster, and a block until it has to wait for its
// cluster: as far ahead of the others as it can come, so that a barrier that is missing shows. The
// order in which they are resumed can be chosen: whatever a kernel does between two barriers must
// not depend on it. What waits forever is found and ends the process with a message.
//
// Shared memory is memory of the block's thread, full of NaN when it starts. So is what an
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
#include <condition_variable>
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
struct alignas(8) float2 {
  float x, y;
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
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique_for_overwrite<std::byte[]>(kBytes);
    Stack stack = std::move(free_.back());
    free_.pop_back();
    return stack;
  }

  void give(Stack stack) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(stack));
  }

 private:
  std::mutex mutex_;
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

class Cluster;

class Block {
 public:
  Block(unsigned index, unsigned rank, Cluster& cluster, int num_threads, Order order)
      : index(index), rank(rank), cluster(cluster), order_(order), random_(index) {
    if (num_threads % kWarp != 0) fail("a block has a part of a warp");
    everyone.members = in_cluster.members = num_threads;
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
      fiber.identity = {.cluster = static_cast<int>(index - rank),
                        .block = static_cast<int>(index),
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
    wait(meeting, [] {});
  }

  template <class Action>
  void wait(Meeting& meeting, const Action& when_all_are_there) {
    [[maybe_unused]] const races::Paused paused;
    const int64_t generation = meeting.generation;
    ++progress;
    if (++meeting.arrived == meeting.members) {
      when_all_are_there();
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
  unsigned rank;
  Cluster& cluster;
  int current = 0;
  int64_t progress = 0;
  Meeting everyone, in_cluster;
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
// Something in the memory that a thread has to itself, to find the same of another thread.
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

// Blocks that can wait for each other and reach each other's shared memory. One of them runs at a
// time, until it waits for the others or ends.
class Cluster {
 public:
  Cluster(int size, Order order)
      : size(size),
        landmarks(size),
        running(size),
        order_(order),
        turns_(size),
        ranks_(size),
        ended_(size) {
    std::iota(ranks_.begin(), ranks_.end(), 0);
    if (order == Order::backwards) std::reverse(ranks_.begin(), ranks_.end());
    if (order == Order::shuffled) std::shuffle(ranks_.begin(), ranks_.end(), random_);
  }

  // Once all blocks are there.
  void start(int rank) {
    std::unique_lock lock(mutex_);
    if (++num_there_ == size) give_turn();
    wait_for_turn(rank, lock);
    running[rank] = true;
  }

  void wait(int rank) {
    std::unique_lock lock(mutex_);
    pass_on();
    wait_for_turn(rank, lock);
  }

  // Nobody waits for a block that has ended.
  void end(int rank) {
    const std::lock_guard lock(mutex_);
    running[rank] = false;
    ended_[rank] = true;
    if (--num_there_ > 0) pass_on();
  }

  int size;
  std::vector<std::byte*> landmarks;
  std::vector<char> running;

 private:
  void give_turn() {
    turn_ = ranks_[place_];
    turns_[turn_].notify_one();
  }

  void wait_for_turn(int rank, std::unique_lock<std::mutex>& lock) {
    turns_[rank].wait(lock, [&] { return turn_ == rank; });
  }

  // To the next block; after the last one all of them have met.
  void pass_on() {
    do {
      if (++place_ < size) continue;
      place_ = 0;
      if (order_ == Order::shuffled) std::shuffle(ranks_.begin(), ranks_.end(), random_);
    } while (ended_[ranks_[place_]]);
    give_turn();
  }

  Order order_;
  std::mt19937 random_;
  std::mutex mutex_;
  std::vector<std::condition_variable> turns_;
  std::vector<int> ranks_;
  std::vector<char> ended_;
  int num_there_ = 0;
  int place_ = 0;
  int turn_ = -1;
};

// `kernel` is called by every thread of the grid. Clusters come one after the other.
inline void launch(unsigned num_blocks, int num_threads, const std::function<void()>& kernel,
                   int cluster_size = 1, Order order = Order::forwards) {
  if (num_blocks % cluster_size != 0) fail("a cluster is not whole");
  races::forget_all();
  for (unsigned first = 0; first < num_blocks; first += cluster_size) {
    Cluster cluster(cluster_size, order);
    const auto body = [&](int rank) {
      poison_shared_memory();
      Block own(first + rank, rank, cluster, num_threads, order);
      block = &own;
      cluster.landmarks[rank] = &landmark;
      cluster.start(rank);
      own.run(kernel);
      cluster.end(rank);
    };
    std::vector<std::thread> threads;
    for (int rank = 0; rank < cluster_size; ++rank) threads.emplace_back(body, rank);
    for (std::thread& thread : threads) thread.join();
  }
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
inline unsigned __ballot_sync(unsigned, bool is_it) {
  unsigned found = 0;
  const auto lanes = simt::block->all_lanes<uint8_t>(is_it);
  for (int lane = 0; lane < simt::kWarp; ++lane) found |= lanes[lane] ? 1U << lane : 0U;
  return found;
}
inline int __ffs(unsigned bits) {
  return bits == 0 ? 0 : std::countr_zero(bits) + 1;
}
inline int __popc(unsigned bits) {
  return std::popcount(bits);
}

template <class T>
T atomicAdd(T* target, T value) {
  return std::atomic_ref(*target).fetch_add(value);
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
