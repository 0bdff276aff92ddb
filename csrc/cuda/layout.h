// Where in a block of memory the parts of a workspace lie.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clasp::cuda {

// Hands out one block of memory, or, from null, tells how large it would have to be.
class Layout {
 public:
  explicit Layout(std::byte* memory) : memory_(memory) {}

  // Aligned to 256 bytes. Parts for w images are never larger than w times those for one.
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
