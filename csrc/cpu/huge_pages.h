// Outputs that are large enough for their allocation to cost something.
#pragma once

#include <cstdint>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

namespace clasp::cpu {

// What is too large for glibc to recycle comes from the system for every call anew, and is mapped
// page by page as it is first written to, which takes longer than computing what is written. Huge
// pages, where the system leaves them to programs, are 512 times fewer. It is no more than advice:
// nothing is lost where it is not taken.
inline void advise_huge_pages(void* data, int64_t num_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kNeverRecycled = int64_t{32} << 20;
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  if (num_bytes < kNeverRecycled) return;
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + static_cast<uintptr_t>(num_bytes)) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data);
  static_cast<void>(num_bytes);
#endif
}

}  // namespace clasp::cpu
