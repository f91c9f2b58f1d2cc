// Work in parts for threads: nothing waits until all are done, so a process that takes a core slows
// only what it displaces.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace amdim {

inline int64_t threads() { return torch::stable::get_num_threads(); }

// Parts of at most ``by`` that make up ``count``.
inline int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Calls task(i) for each i < count, in whichever thread is free.
template <class Task>
void hand_out(int64_t count, const Task& task) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(count, threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
  });
}

}  // namespace amdim
