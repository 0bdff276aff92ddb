// What nvcc compiles as well: functions for both sides, and algorithms of a block of GPU threads,
// which are compiled for the GPU alone by nvcc and for tests that emulate a block by anyone else.
#pragma once

#ifdef __CUDACC__
#  define CLASP_HOST_DEVICE __host__ __device__
#  define CLASP_DEVICE __device__
#  define CLASP_UNROLL_ITEMS _Pragma("unroll")
#else
#  define CLASP_HOST_DEVICE
#  define CLASP_DEVICE
#  define CLASP_UNROLL_ITEMS
#endif
