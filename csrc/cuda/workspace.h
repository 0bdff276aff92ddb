// Memory that a call needs besides its results, from torch's allocator, which orders its reuse by
// the current stream.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <cstdint>

#include "common/outputs.h"

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

class Workspace {
 public:
  Workspace(int64_t bytes, Place place)
      : memory_(empty<1>({bytes}, aoti_torch_dtype_uint8(), place)) {}

  Layout layout() { return Layout(static_cast<std::byte*>(memory_.mutable_data_ptr())); }

 private:
  torch::stable::Tensor memory_;
};

}  // namespace clasp::cuda
