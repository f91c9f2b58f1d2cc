// How a view is drawn: the values that amdim_fast/views/reference_sampling.py draws. Sums, products,
// quotients and roots of doubles only, so that every machine and every GPU draws the same.
#pragma once

#include <cmath>
#include <cstdint>

#include "philox.h"
#include "view.h"

namespace amdim {

constexpr int kTries = 10;
enum Quantity { kFactors = kTries, kOrder, kTranslation, kChances };

// The tensor ``policy``: float64, in this order.
struct Policy {
  double crops, scale_low, scale_span, log_ratio_low, log_ratio_span, ratio_low, ratio_high;
  double max_translation, translate_chance, flip_chance, jitter_chance, gray_chance;
  double factor_low[3], factor_span[3], hue;
};
constexpr int kPolicyValues = 19;
static_assert(sizeof(Policy) == kPolicyValues * sizeof(double), "a policy has no padding");

// Which view of which image; ``index`` is the image's in the whole data set.
struct Subject {
  uint64_t seed;
  int64_t index, view, height, width;

  AMDIM_HD Words draw(int64_t of_view, int quantity) const {
    const uint64_t key = static_cast<uint64_t>(index);
    const Words counter{{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32),
                         static_cast<uint32_t>(of_view), static_cast<uint32_t>(quantity)}};
    return philox(counter, seed);
  }
  AMDIM_HD Words draw(int quantity) const { return draw(view, quantity); }
};

// exp(x) to about 1e-13.
AMDIM_HD double exponential(double x) {
  const double y = x / 1024.0;
  double power =
      1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0))));
  for (int i = 0; i < 10; ++i) power = power * power;
  return power;
}

AMDIM_HD void set_crop(View& view, int64_t top, int64_t left, int64_t height, int64_t width) {
  view.top = static_cast<int32_t>(top);
  view.left = static_cast<int32_t>(left);
  view.height = static_cast<int32_t>(height);
  view.width = static_cast<int32_t>(width);
}

AMDIM_HD void draw_crop(const Policy& policy, const Subject& subject, View& view) {
  const int64_t height = subject.height, width = subject.width;
  if (policy.crops == 0.0) return set_crop(view, 0, 0, height, width);
  const double h = static_cast<double>(height), w = static_cast<double>(width);
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const Words words = subject.draw(attempt);
    const double area = h * w * (policy.scale_low + policy.scale_span * words.unit(0));
    const double ratio =
        exponential(policy.log_ratio_low + policy.log_ratio_span * words.unit(1));
    const int64_t rows = static_cast<int64_t>(nearbyint(sqrt(area / ratio)));
    const int64_t columns = static_cast<int64_t>(nearbyint(sqrt(area * ratio)));
    if (rows >= 1 && rows <= height && columns >= 1 && columns <= width) {
      return set_crop(view, words.below(2, height - rows + 1), words.below(3, width - columns + 1),
                      rows, columns);
    }
  }
  const double most_rows = nearbyint(w / policy.ratio_low);
  const double most_columns = nearbyint(h * policy.ratio_high);
  const int64_t rows = static_cast<int64_t>(most_rows < h ? most_rows : h);
  const int64_t columns = static_cast<int64_t>(most_columns < w ? most_columns : w);
  const int64_t central_rows = rows < 1 ? 1 : rows, central_columns = columns < 1 ? 1 : columns;
  set_crop(view, (height - central_rows) / 2, (width - central_columns) / 2, central_rows,
           central_columns);
}

// The whole view, resized to size x size.
AMDIM_HD View draw_view(const Policy& policy, const Subject& subject, int size) {
  View view{};
  draw_crop(policy, subject, view);
  view.resized_height = view.resized_width = size;

  const Words factors = subject.draw(kFactors);
  for (int i = 0; i < 3; ++i) {
    view.factor[i] =
        static_cast<float>(policy.factor_low[i] + policy.factor_span[i] * factors.unit(i));
  }
  view.factor[kHue] = static_cast<float>(policy.hue * (2.0 * factors.unit(3) - 1.0));

  // Sorted by keys; equal ones keep their order.
  const Words keys = subject.draw(kOrder);
  for (int i = 0; i < kOperations; ++i) {
    int place = i;
    for (; place > 0 && keys.word[view.order[place - 1]] > keys.word[i]; --place) {
      view.order[place] = view.order[place - 1];
    }
    view.order[place] = i;
  }

  const Words translation = subject.draw(kTranslation);
  const int64_t most = static_cast<int64_t>(policy.max_translation);
  const bool moves = translation.unit(2) < policy.translate_chance;
  view.dy = moves ? static_cast<int32_t>(translation.below(0, 2 * most + 1) - most) : 0;
  view.dx = moves ? static_cast<int32_t>(translation.below(1, 2 * most + 1) - most) : 0;

  const Words chances = subject.draw(kChances);
  view.flags = kFlip * (subject.draw(0, kChances).unit(0) < policy.flip_chance) +
               kJitter * (chances.unit(1) < policy.jitter_chance) +
               kGray * (chances.unit(2) < policy.gray_chance);
  return view;
}

}  // namespace amdim
