// Compiled without -fsanitize=thread, because this file replaces the sanitizer's runtime.
#define SIMT_RACES
#include "races.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <set>
#include <unordered_map>

namespace simt::races {
namespace {

const Thread* current = nullptr;

struct Access {
  Thread thread;
  uintptr_t begin, end;
  bool writes, is_atomic;
  const void* place;
};

std::unordered_map<uintptr_t, std::vector<Access>> shadow;  // keyed by words of four bytes
std::set<std::string> reports;

bool is_before(const Thread& first, const Thread& second) {
  if (first.block != second.block) return false;
  const bool is_same = first.warp == second.warp && first.lane == second.lane;
  return is_same || first.barriers < second.barriers;
}

std::string name(const Access& access) {
  Dl_info info;
  char text[160];
  const bool known = dladdr(access.place, &info) != 0;
  const auto offset = reinterpret_cast<uintptr_t>(access.place) -
                      (known ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0);
  std::snprintf(text, sizeof(text), "%s at +0x%zx", access.writes ? "write" : "read", offset);
  return text;
}

// Whether two accesses are of the same kind, to the same bytes.
bool are_alike(const Access& first, const Access& second) {
  return first.begin == second.begin && first.end == second.end && first.writes == second.writes &&
         first.is_atomic == second.is_atomic;
}

// Whether `now`, a read, adds nothing: two other threads of its block have read the same since
// their last barrier. Whatever will race with it then races with one of them.
bool is_redundant(const std::vector<Access>& known, const Access& now) {
  if (now.writes) return false;
  return std::count_if(known.begin(), known.end(), [&](const Access& before) {
           return are_alike(before, now) && before.thread.block == now.thread.block &&
                  before.thread.barriers == now.thread.barriers;
         }) >= 2;
}

void access(const void* address, size_t bytes, bool writes, bool is_atomic, const void* place) {
  if (current == nullptr || bytes == 0) return;
  const Thread& thread = *current;
  const auto* first = static_cast<const std::byte*>(address);
  if (first >= thread.stack && first < thread.stack + thread.stack_bytes) return;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const Access now{thread, begin, begin + bytes, writes, is_atomic, place};
  for (uintptr_t word = begin / 4; word <= (begin + bytes - 1) / 4; ++word) {
    std::vector<Access>& known = shadow[word];
    for (const Access& before : known) {
      const bool harmless = (!before.writes && !writes) || (before.is_atomic && is_atomic) ||
                            before.end <= now.begin || now.end <= before.begin;
      if (harmless || is_before(before.thread, thread)) continue;
      reports.insert(name(before) + ", " + name(now));
    }
    if (is_redundant(known, now)) continue;
    // Accesses that are ordered before this one and covered by it can be forgotten.
    std::erase_if(known, [&](const Access& before) {
      return is_before(before.thread, thread) && (writes || !before.writes) &&
             before.is_atomic == is_atomic && now.begin <= before.begin && before.end <= now.end;
    });
    known.push_back(now);
  }
}

}  // namespace

// Called by the __tsan_* functions below.
static void note(const void* address, size_t bytes, bool writes, bool is_atomic,
                 const void* place) {
  access(address, bytes, writes, is_atomic, place);
}

void run(const Thread* thread) {
  current = thread;
}
const Thread* running() {
  return current;
}

void access_by(const Thread& thread, const void* address, size_t bytes, bool writes) {
  const Thread* before = current;
  current = &thread;
  access(address, bytes, writes, false, __builtin_return_address(0));
  current = before;
}

void forget_all() {
  shadow.clear();
}

void forget(const void* address, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t word = begin / 4; word <= (begin + bytes - 1) / 4; ++word) shadow.erase(word);
}

std::vector<std::string> take_reports() {
  std::vector<std::string> taken(reports.begin(), reports.end());
  reports.clear();
  return taken;
}

}  // namespace simt::races

#define SIMT_PLACE __builtin_return_address(0)
#define SIMT_PLAIN(name, bytes)                                  \
  void __tsan_read##name(void* address) {                        \
    simt::races::note(address, bytes, false, false, SIMT_PLACE); \
  }                                                              \
  void __tsan_write##name(void* address) {                       \
    simt::races::note(address, bytes, true, false, SIMT_PLACE);  \
  }                                                              \
  void __tsan_unaligned_read##name(void* address) {              \
    simt::races::note(address, bytes, false, false, SIMT_PLACE); \
  }                                                              \
  void __tsan_unaligned_write##name(void* address) {             \
    simt::races::note(address, bytes, true, false, SIMT_PLACE);  \
  }
#define SIMT_ATOMIC(bits, type)                                                                   \
  type __tsan_atomic##bits##_load(const type* address, int) {                                     \
    simt::races::note(address, sizeof(type), false, true, SIMT_PLACE);                            \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  void __tsan_atomic##bits##_store(type* address, type value, int) {                              \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                           \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_add(type* address, type value, int) {                          \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);                                  \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_sub(type* address, type value, int) {                          \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    return __atomic_fetch_sub(address, value, __ATOMIC_SEQ_CST);                                  \
  }                                                                                               \
  type __tsan_atomic##bits##_fetch_or(type* address, type value, int) {                           \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    return __atomic_fetch_or(address, value, __ATOMIC_SEQ_CST);                                   \
  }                                                                                               \
  type __tsan_atomic##bits##_exchange(type* address, type value, int) {                           \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                 \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(type* address, type* expected, type value,    \
                                                    int, int) {                                   \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST,         \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(type* address, type* expected, type value, int, \
                                                  int) {                                          \
    simt::races::note(address, sizeof(type), true, true, SIMT_PLACE);                             \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST,         \
                                       __ATOMIC_SEQ_CST);                                         \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void*, size_t) {}
void __tsan_write_range(void*, size_t) {}
SIMT_PLAIN(1, 1)
SIMT_PLAIN(2, 2)
SIMT_PLAIN(4, 4)
SIMT_PLAIN(8, 8)
SIMT_PLAIN(16, 16)
SIMT_ATOMIC(8, uint8_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)
}
