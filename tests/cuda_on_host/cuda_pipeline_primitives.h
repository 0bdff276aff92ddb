#pragma once

#include "simt.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
  [[maybe_unused]] const simt::races::Paused paused;
  if (size != 4 && size != 8 && size != 16) simt::fail("an asynchronous copy of such a size");
  simt::check_alignment(to, size);
  simt::check_alignment(from, size);
  simt::races::access_by(simt::block->fiber().identity, to, size, true);
  std::memset(to, 0xFF, size);
  simt::block->fiber().copies.push_back({to, from, size, zeros});
}
inline void __pipeline_commit() {
  [[maybe_unused]] const simt::races::Paused paused;
  simt::Fiber& fiber = simt::block->fiber();
  fiber.groups.push_back(std::exchange(fiber.copies, {}));
}
inline void __pipeline_wait_prior(size_t newest) {
  [[maybe_unused]] const simt::races::Paused paused;
  auto& groups = simt::block->fiber().groups;
  while (groups.size() > newest) {
    for (const simt::Copy& copy : groups.front()) {
      const simt::races::Thread& thread = simt::block->fiber().identity;
      simt::races::access_by(thread, copy.from, copy.size - copy.zeros, false);
      simt::races::access_by(thread, copy.to, copy.size, true);
      if (copy.size > copy.zeros) memcpy(copy.to, copy.from, copy.size - copy.zeros);
      std::memset(static_cast<std::byte*>(copy.to) + copy.size - copy.zeros, 0, copy.zeros);
    }
    groups.erase(groups.begin());
  }
}
