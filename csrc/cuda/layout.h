// Divides a workspace into parts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clasp::cuda {

// Hands out parts of one block of memory. If `memory` is null, only computes the size required.
class Layout {
 public:
  explicit Layout(std::byte* memory) : memory_(memory) {}

  // Parts are aligned to 256 bytes. Parts for w images are never larger than w times those for one.
  template <class T>
  T* add(int64_t count) {
    auto* part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + size_);
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return part;
  }

  int64_t size() const { return size_; }

 private:
  std::byte* memory_;
  int64_t size_ = 0;
};

}  // namespace clasp::cuda
