// The arguments of the ops that draw views, checked; all are on the CPU.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>

#include "shared/sampling.h"

namespace amdim {

using torch::stable::Tensor;

struct SamplingArgs {
  Policy policy;
  const int64_t* sizes;  // [N, 2] height, width
  const int64_t* index;  // [N]
  int64_t count, views;  // N, V
  uint64_t seed;

  Subject subject(int64_t image, int64_t view) const {
    return {seed, index[image], view, sizes[2 * image], sizes[2 * image + 1]};
  }
};

inline SamplingArgs sampling_args(const Tensor& sizes, const Tensor& sample_index,
                                  const Tensor& policy, int64_t seed, int64_t views) {
  using torch::headeronly::DeviceType;
  using torch::headeronly::ScalarType;
  const int64_t count = sample_index.numel();
  for (const Tensor* tensor : {&sizes, &sample_index, &policy}) {
    STD_TORCH_CHECK(tensor->device().type() == DeviceType::CPU,
                    "sizes, sample_index and policy must be on the CPU");
  }
  STD_TORCH_CHECK(sizes.scalar_type() == ScalarType::Long && sizes.is_contiguous() &&
                      sizes.numel() == 2 * count,
                  "sizes must be contiguous int64 [N, 2]");
  STD_TORCH_CHECK(sample_index.scalar_type() == ScalarType::Long && sample_index.is_contiguous(),
                  "sample_index must be contiguous int64 [N]");
  STD_TORCH_CHECK(policy.scalar_type() == ScalarType::Double && policy.is_contiguous() &&
                      policy.numel() == kPolicyValues,
                  "policy must be contiguous float64 [19]");
  STD_TORCH_CHECK(views >= 0, "views is ", views, "; it must be 0 or more");
  SamplingArgs args{*static_cast<const Policy*>(policy.data_ptr()),
                    static_cast<const int64_t*>(sizes.data_ptr()),
                    static_cast<const int64_t*>(sample_index.data_ptr()),
                    count,
                    views,
                    static_cast<uint64_t>(seed)};
  const double* values = static_cast<const double*>(policy.data_ptr());
  for (int i = 0; i < kPolicyValues; ++i) {
    STD_TORCH_CHECK(std::isfinite(values[i]), "policy must be finite");
  }
  STD_TORCH_CHECK(args.policy.max_translation >= 0 && args.policy.max_translation < (1 << 24),
                  "max_translation must be in 0..2^24");
  for (int64_t i = 0; i < 2 * count; ++i) {
    STD_TORCH_CHECK(args.sizes[i] >= 1 && args.sizes[i] < (1 << 24),
                    "sizes must be in 1..2^24, pixels");
  }
  return args;
}

}  // namespace amdim
