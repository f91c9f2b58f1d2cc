// A function compiled for several instruction sets, of which the machine's best runs.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define AMDIM_CLONES(...) __attribute__((target_clones(__VA_ARGS__, "default"), flatten))
#else
#define AMDIM_CLONES(...) __attribute__((flatten))
#endif
