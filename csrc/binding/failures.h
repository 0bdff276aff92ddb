// What a kernel says where torch fails it or memory runs out. Between libtorch and a library of the
// stable ABI an error is a code: type and text of the exception stay behind. Programs that go on
// with a smaller batch look for the text, so it has to be the one that torch would have raised.
#pragma once

#include <torch/csrc/stable/library.h>

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

// Of torch 2.13 and later: the message of the last exception that the calling thread has met behind
// the border. Weak, as the same library is for older ones too.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace clasp {

// Why the call that has just failed did, in torch's words; empty where torch does not tell.
inline std::string torch_message() {
  if (torch_exception_get_what_without_backtrace == nullptr) return "";
  const char* message = torch_exception_get_what_without_backtrace();
  return message == nullptr ? "" : message;
}

// Throws if `code`, which `call` returned, is not that of success.
inline void check_torch(AOTITorchError code, const char* call) {
  if (code == TORCH_SUCCESS) return;
  const std::string message = torch_message();
  throw std::runtime_error(message.empty() ? std::string(call) + " failed" : message);
}

// As programs know torch to begin.
inline constexpr const char* kNoCpuMemory = "DefaultCPUAllocator: can't allocate memory";
inline constexpr const char* kNoCudaMemory = "CUDA out of memory";

// Calls an op; memory that C++ could not get for its working space is reported as torch reports
// what its own allocator could not get.
template <auto kOp>
struct Reporting;

template <class Result, class... Arguments, Result (*kOp)(Arguments...)>
struct Reporting<kOp> {
  static Result run(Arguments... arguments) {
    try {
      return kOp(std::forward<Arguments>(arguments)...);
    } catch (const std::bad_alloc&) {
      throw std::runtime_error(std::string(kNoCpuMemory) + " for the working space of a kernel");
    } catch (const std::length_error&) {  // more than a vector may ever hold
      throw std::runtime_error(std::string(kNoCpuMemory) + " for the working space of a kernel");
    }
  }
};

}  // namespace clasp

// A kernel for the dispatcher.
#define CLASP_BOX(op) TORCH_BOX(&clasp::Reporting<(op)>::run)
