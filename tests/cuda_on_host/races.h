// Finds accesses to the same memory that no barrier keeps apart, whatever order they came in.
//
// A build with -fsanitize=thread has the compiler call a function at every access; these are ours,
// not those of a sanitizer. Two accesses to a word by different threads, of which one writes, are
// apart if their block has met at a barrier in between. A shuffle is none: it exchanges registers,
// and says nothing about memory. Atomics may meet each other. A launch ends what was before it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace simt::races {

// A thread of the grid.
struct Thread {
  int block, warp, lane;
  int barriers;            // passed so far
  const std::byte* stack;  // its own, which nobody shares
  size_t stack_bytes;
};

#ifdef SIMT_RACES

// Whose code runs now; null: the host's, or the emulation's, of which nothing is recorded.
void run(const Thread* thread);
const Thread* running();
// What the emulation does in place of a thread.
void access_by(const Thread& thread, const void* address, size_t bytes, bool writes);
void forget_all();
void forget(const void* address, size_t bytes);
// Since the last call; places are offsets in the module.
std::vector<std::string> take_reports();

// While it lives, the emulation itself runs.
class Paused {
 public:
  [[gnu::no_sanitize("thread")]] Paused() : before_(running()) { run(nullptr); }
  [[gnu::no_sanitize("thread")]] ~Paused() { run(before_); }
  Paused(const Paused&) = delete;

 private:
  const Thread* before_;
};

#else

inline void run(const Thread*) {}
inline void access_by(const Thread&, const void*, size_t, bool) {}
inline void forget_all() {}
inline void forget(const void*, size_t) {}
struct Paused {};

#endif

}  // namespace simt::races
