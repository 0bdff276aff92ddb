// Finds accesses to the same memory without a barrier in between, in any order of execution.
//
// -fsanitize=thread makes the compiler call a function at every access. The functions here replace
// those of the sanitizer. Two accesses to a word by different threads race if one of them writes
// and their block has not met at a barrier in between. A shuffle is not a barrier: it exchanges
// registers and does not order memory accesses. Atomics do not race with each other. A launch is
// ordered after everything before it.

#include <cstddef>
#include <string>
#include <vector>

namespace simt::races {

// A thread of the grid.
struct Thread {
  int block, warp, lane;
  int barriers;            // barriers passed so far
  const std::byte* stack;  // the thread's own stack, which is not shared
  size_t stack_bytes;
};

#ifdef SIMT_RACES

// Sets the thread whose code runs now. Null means the host or the emulation, which are not
// recorded.
void run(const Thread* thread);
const Thread* running();
// Records an access that the emulation makes on behalf of a thread.
void access_by(const Thread& thread, const void* address, size_t bytes, bool writes);
void forget_all();
void forget(const void* address, size_t bytes);
// Returns the races since the last call; code positions are offsets in the module.
std::vector<std::string> take_reports();

// Pauses recording during its lifetime, while the emulation runs.
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
