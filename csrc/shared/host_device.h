// Macros for code that nvcc compiles too: functions for host and device, and algorithms of a thread
// block. Other compilers see the latter only in tests that run them on the host.
#pragma once

#ifdef __CUDACC__
#  define CLASP_HOST_DEVICE __host__ __device__
#  define CLASP_DEVICE __device__
#  define CLASP_DEVICE_UNROLL _Pragma("unroll")
#  define CLASP_DEVICE_UNROLL_4 _Pragma("unroll 4")
#else
#  define CLASP_HOST_DEVICE
#  define CLASP_DEVICE
#  define CLASP_DEVICE_UNROLL
#  define CLASP_DEVICE_UNROLL_4
#endif
