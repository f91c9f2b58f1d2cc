// amdim_fast::sample_views: draws the values that amdim_fast/views/reference_sampling.py draws.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "shared/philox.h"

namespace amdim {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kTries = 10;
constexpr int kGrain = 64;
enum Quantity { kFactors = kTries, kOrder, kTranslation, kChances };

// The tensor ``policy``: float64, in this order.
struct Policy {
  double crops, scale_low, scale_span, log_ratio_low, log_ratio_span, ratio_low, ratio_high;
  double max_translation, translate_chance, flip_chance, jitter_chance, gray_chance;
  double factor_low[3], factor_span[3], hue;
};
constexpr int kPolicyValues = 19;
static_assert(sizeof(Policy) == kPolicyValues * sizeof(double), "a policy has no padding");

struct Box {
  int32_t top, left, height, width;
};

// exp(x) to about 1e-13, in sums and products only, so that every machine draws the same.
double exponential(double x) {
  const double y = x / 1024.0;
  double power =
      1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0))));
  for (int i = 0; i < 10; ++i) power = power * power;
  return power;
}

template <class Draw>
Box draw_crop(const Policy& policy, int64_t height, int64_t width, Draw draw) {
  auto box = [](int64_t top, int64_t left, int64_t h, int64_t w) {
    return Box{static_cast<int32_t>(top), static_cast<int32_t>(left), static_cast<int32_t>(h),
               static_cast<int32_t>(w)};
  };
  if (policy.crops == 0.0) return box(0, 0, height, width);
  const double h = static_cast<double>(height), w = static_cast<double>(width);
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const Words words = draw(attempt);
    const double area = h * w * (policy.scale_low + policy.scale_span * words.unit(0));
    const double ratio =
        exponential(policy.log_ratio_low + policy.log_ratio_span * words.unit(1));
    const int64_t crop_height = static_cast<int64_t>(std::nearbyint(std::sqrt(area / ratio)));
    const int64_t crop_width = static_cast<int64_t>(std::nearbyint(std::sqrt(area * ratio)));
    if (crop_height >= 1 && crop_height <= height && crop_width >= 1 && crop_width <= width) {
      return box(words.below(2, height - crop_height + 1), words.below(3, width - crop_width + 1),
                 crop_height, crop_width);
    }
  }
  const int64_t central_height = std::max<int64_t>(
      1, static_cast<int64_t>(std::min(h, std::nearbyint(w / policy.ratio_low))));
  const int64_t central_width = std::max<int64_t>(
      1, static_cast<int64_t>(std::min(w, std::nearbyint(h * policy.ratio_high))));
  return box((height - central_height) / 2, (width - central_width) / 2, central_height,
             central_width);
}

using Fields = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                          Tensor>;

Fields sample_views(const Tensor& sizes, const Tensor& sample_index, const Tensor& policy_values,
                    int64_t seed, int64_t views) {
  const int64_t count = sample_index.numel();
  STD_TORCH_CHECK(sizes.scalar_type() == ScalarType::Long && sizes.is_contiguous() &&
                      sizes.numel() == 2 * count,
                  "sizes must be contiguous int64 [N, 2]");
  STD_TORCH_CHECK(sample_index.scalar_type() == ScalarType::Long && sample_index.is_contiguous(),
                  "sample_index must be contiguous int64 [N]");
  STD_TORCH_CHECK(policy_values.scalar_type() == ScalarType::Double &&
                      policy_values.is_contiguous() && policy_values.numel() == kPolicyValues,
                  "policy must be contiguous float64 [19]");
  const Policy policy = *static_cast<const Policy*>(policy_values.data_ptr());
  const int64_t* size = static_cast<const int64_t*>(sizes.data_ptr());
  const int64_t* index = static_cast<const int64_t*>(sample_index.data_ptr());
  auto field = [&](ScalarType type) { return torch::stable::empty({views, count}, type); };
  auto rows = [&](int64_t length) {
    return torch::stable::empty({views, count, length}, ScalarType::Int);
  };
  Fields fields{rows(4),
                rows(2),
                field(ScalarType::Bool),
                field(ScalarType::Bool),
                rows(4),
                field(ScalarType::Float),
                field(ScalarType::Float),
                field(ScalarType::Float),
                field(ScalarType::Float),
                field(ScalarType::Bool)};
  auto* crop = static_cast<Box*>(std::get<0>(fields).data_ptr());
  auto* translate = static_cast<int32_t*>(std::get<1>(fields).data_ptr());
  auto* flip = static_cast<bool*>(std::get<2>(fields).data_ptr());
  auto* jitter = static_cast<bool*>(std::get<3>(fields).data_ptr());
  auto* order = static_cast<int32_t*>(std::get<4>(fields).data_ptr());
  float* factor[3] = {static_cast<float*>(std::get<5>(fields).data_ptr()),
                      static_cast<float*>(std::get<6>(fields).data_ptr()),
                      static_cast<float*>(std::get<7>(fields).data_ptr())};
  auto* hue = static_cast<float*>(std::get<8>(fields).data_ptr());
  auto* gray = static_cast<bool*>(std::get<9>(fields).data_ptr());

  auto sample = [&](int64_t item) {
    const int64_t n = item % count;
    const uint64_t key = static_cast<uint64_t>(index[n]);
    auto draw_of = [&](int64_t view, int quantity) {
      const Words counter{{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32),
                           static_cast<uint32_t>(view), static_cast<uint32_t>(quantity)}};
      return philox(counter, static_cast<uint64_t>(seed));
    };
    auto draw = [&](int quantity) { return draw_of(item / count, quantity); };
    crop[item] = draw_crop(policy, size[2 * n], size[2 * n + 1], draw);

    const Words factors = draw(kFactors);
    for (int i = 0; i < 3; ++i) {
      factor[i][item] =
          static_cast<float>(policy.factor_low[i] + policy.factor_span[i] * factors.unit(i));
    }
    hue[item] = static_cast<float>(policy.hue * (2.0 * factors.unit(3) - 1.0));

    const Words keys = draw(kOrder);
    int32_t* permutation = order + 4 * item;
    for (int i = 0; i < 4; ++i) permutation[i] = i;
    std::stable_sort(permutation, permutation + 4,
                     [&](int32_t a, int32_t b) { return keys.word[a] < keys.word[b]; });

    const Words translation = draw(kTranslation);
    const int64_t most = static_cast<int64_t>(policy.max_translation);
    const bool moves = translation.unit(2) < policy.translate_chance;
    for (int i = 0; i < 2; ++i) {
      const int64_t offset = translation.below(i, 2 * most + 1) - most;
      translate[2 * item + i] = moves ? static_cast<int32_t>(offset) : 0;
    }

    const Words chances = draw(kChances);
    flip[item] = draw_of(0, kChances).unit(0) < policy.flip_chance;
    jitter[item] = chances.unit(1) < policy.jitter_chance;
    gray[item] = chances.unit(2) < policy.gray_chance;
  };
  torch::stable::parallel_for(0, views * count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) sample(item);
  });
  return fields;
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) {
  m.impl("sample_views", TORCH_BOX(&amdim::sample_views));
}
