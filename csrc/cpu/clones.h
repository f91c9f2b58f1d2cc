// A function compiled for several instruction sets, of which the machine's best runs.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define AMDIM_CLONES(...) __attribute__((target_clones(__VA_ARGS__, "default"), flatten))
#else
#define AMDIM_CLONES(...) __attribute__((flatten))
#endif

// "avx2" is without products that are fused with sums; only newer compilers have the level with both.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define AMDIM_AVX2_FMA "arch=x86-64-v3"
#else
#define AMDIM_AVX2_FMA "avx2"
#endif
