// Turns off flushing of subnormals within a scope. torch.set_flush_denormal applies to the calling
// thread but not to the threads of the pool, and results must not depend on which thread runs.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#  include <xmmintrin.h>
#endif

namespace clasp::cpu {

class KeepSubnormals {
 public:
  KeepSubnormals() : before_(read()) { write(before_ & ~kFlush); }
  ~KeepSubnormals() { write(before_); }
  KeepSubnormals(const KeepSubnormals&) = delete;
  KeepSubnormals& operator=(const KeepSubnormals&) = delete;

 private:
#if defined(__x86_64__)
  using Control = uint32_t;
  static constexpr Control kFlush = 0x8040;  // flush-to-zero (0x8000) and denormals-are-zero (0x40)
  static Control read() { return _mm_getcsr(); }
  static void write(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kFlush = (uint64_t{1} << 24) | (uint64_t{1} << 19);
  static Control read() {
    Control control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void write(Control control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = uint32_t;
  static constexpr Control kFlush = 0;
  static Control read() { return 0; }
  static void write(Control) {}
#endif

  Control before_;
};

}  // namespace clasp::cpu
