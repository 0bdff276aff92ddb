// Replaces csrc/cuda/workspace.h: accesses beyond the last byte crash.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "binding/outputs.h"
#include "cuda/layout.h"
#include "simt.h"

namespace clasp::cuda {

class Workspace {
 public:
  Workspace(int64_t bytes, Place) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t used = (bytes + 15) / 16 * 16;
    const int64_t readable = (used + page - 1) / page * page;
    size_ = static_cast<size_t>(readable + page);
    void* mapped = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) simt::fail("no memory for a workspace");
    first_ = static_cast<std::byte*>(mapped);
    mprotect(first_ + readable, page, PROT_NONE);
    memory_ = first_ + readable - used;
    std::memset(memory_, 0xFF, used);
  }
  ~Workspace() { munmap(first_, size_); }
  Workspace(const Workspace&) = delete;

  Layout layout() { return Layout(memory_); }

 private:
  size_t size_;
  std::byte* first_;
  std::byte* memory_;
};

}  // namespace clasp::cuda
