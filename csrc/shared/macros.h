// Macros for code that runs on the host and on CUDA. Compile without FMA contraction or fast math.
#pragma once

#if defined(__CUDACC__)
#define AMDIM_HD __host__ __device__ __forceinline__
#define AMDIM_LANE_LOOP _Pragma("unroll")
#define AMDIM_SHORT_LOOP _Pragma("unroll 2")
#else
#define AMDIM_HD inline __attribute__((always_inline))
// GCC vectorizes a loop only if it has not unrolled it.
#define AMDIM_LANE_LOOP _Pragma("GCC unroll 1")
#define AMDIM_SHORT_LOOP
#endif
