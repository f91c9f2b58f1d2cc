// What lets one source serve the host and CUDA. Compile without FMA contraction and fast math.
#pragma once

#if defined(__CUDACC__)
#define AMDIM_HD __host__ __device__ __forceinline__
#define AMDIM_LANE_LOOP _Pragma("unroll")
#else
#define AMDIM_HD inline __attribute__((always_inline))
// GCC makes vectors of a loop that it has not unrolled.
#define AMDIM_LANE_LOOP _Pragma("GCC unroll 1")
#endif
