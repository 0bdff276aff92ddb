// Error messages for failed torch calls and for memory that runs out. The stable ABI returns an
// error code and drops the type and message of the exception. Programs that retry with a smaller
// batch search the message, so it has to be the one that torch raises.
#pragma once

#include <torch/csrc/stable/library.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

// Available from torch 2.13: the message of the last exception that the calling thread met inside
// libtorch. Declared weak, because this library also loads with older versions.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace clasp {

// The message of the torch call that has just failed, or an empty string if torch does not keep it.
inline std::string torch_message() {
  if (torch_exception_get_what_without_backtrace == nullptr) return "";
  const char* message = torch_exception_get_what_without_backtrace();
  return message == nullptr ? "" : message;
}

// Throws if `code`, which `call` returned, is an error.
inline void check_torch(AOTITorchError code, const char* call) {
  if (code == TORCH_SUCCESS) return;
  const std::string message = torch_message();
  throw std::runtime_error(message.empty() ? std::string(call) + " failed" : message);
}

// The beginnings of torch's own out-of-memory messages.
inline constexpr const char* kNoCpuMemory = "DefaultCPUAllocator: can't allocate memory";
inline constexpr const char* kNoCudaMemory = "CUDA out of memory";

// Calls an op. If C++ runs out of memory for its workspace, throws the error that torch's own
// allocator raises.
template <auto kOp>
struct Reporting;

template <class Result, class... Arguments, Result (*kOp)(Arguments...)>
struct Reporting<kOp> {
  static Result run(Arguments... arguments) {
    try {
      return kOp(std::forward<Arguments>(arguments)...);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error(std::string(kNoCpuMemory) + " for a kernel's workspace");
    } catch (const std::length_error&) {  // a size beyond the maximum of std::vector
      throw std::runtime_error(std::string(kNoCpuMemory) + " for a kernel's workspace");
    }
  }
};

}  // namespace clasp

// Wraps an op for the dispatcher.
#define CLASP_BOX(op) TORCH_BOX(&clasp::Reporting<(op)>::run)
