// Preloaded into a process, counts the bytes that malloc has given out and their peak.
//
// glibc only: it has its functions under a second name, so that no symbol has to be looked up,
// which would allocate. Sizes are what malloc really set aside.
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>

#include <atomic>

extern "C" {

void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* block, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);

static std::atomic<int64_t> live{0};
static std::atomic<int64_t> peak{0};

static void* given(void* block) {
  const int64_t size = static_cast<int64_t>(malloc_usable_size(block));
  const int64_t now = live.fetch_add(size) + size;
  int64_t highest = peak.load();
  while (now > highest && !peak.compare_exchange_weak(highest, now)) {
  }
  return block;
}

void* malloc(size_t size) {
  return given(__libc_malloc(size));
}

void* calloc(size_t count, size_t size) {
  return given(__libc_calloc(count, size));
}

void* memalign(size_t alignment, size_t size) {
  return given(__libc_memalign(alignment, size));
}

void* aligned_alloc(size_t alignment, size_t size) {
  return memalign(alignment, size);
}

int posix_memalign(void** block, size_t alignment, size_t size) {
  void* aligned = memalign(alignment, size);
  if (aligned == nullptr) return ENOMEM;
  *block = aligned;
  return 0;
}

void free(void* block) {
  live -= static_cast<int64_t>(malloc_usable_size(block));
  __libc_free(block);
}

void* realloc(void* block, size_t size) {
  const int64_t before = static_cast<int64_t>(malloc_usable_size(block));
  void* moved = __libc_realloc(block, size);
  if (moved == nullptr && size != 0) return nullptr;  // the old block is still there
  live -= before;
  return given(moved);
}

// What is live now, and the peak starts anew from there.
int64_t count_malloc_restart() {
  const int64_t now = live.load();
  peak.store(now);
  return now;
}

int64_t count_malloc_peak() {
  return peak.load();
}
}
