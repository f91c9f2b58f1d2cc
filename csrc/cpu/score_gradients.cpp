// Gradients of raw products, of scores that are read once; they may take the place of the scores.

// Unlike in views, products may be fused with sums.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "score_block.h"

namespace amdim {
namespace {

using torch::stable::Tensor;

// Of negatives, weight * exp(score - neg) * slope; with own images, own. And penalty * stored.
struct RowTerms {
  const float *own, *weight, *neg, *penalty;
  int64_t softmaxes;
};

// weight * exp(score - neg) * slope. The score is scaled as in sums, so that its rounding, alike for all
// scores, is in neg too and cancels.
AMDIM_INLINE float of_clipped(float stored, float weight, float neg, float clip) {
  const float e = exp2_of(-kLog2E * stored), u = 2.0f / (1.0f + e);
  return weight * (e * u * u * exp2_of(kLog2E * (clip - neg) - kLog2E * clip * u));
}

AMDIM_INLINE float of_unclipped(float stored, float weight, float neg) {
  return weight * exp2_of(kLog2E * (stored - neg));
}

// ``negatives(stored, weight, neg)`` is the gradient where the image is not the own one.
template <class Negatives>
AMDIM_INLINE void write_images(const Block& block, const RowTerms& of, int64_t first, int64_t last,
                               float* out, const Negatives& negatives) {
  Strip found;
  for (int64_t row = first * block.locations; row < last * block.locations; ++row) {
    const int64_t image = row / block.locations, location = row % block.locations;
    const int64_t place = of.softmaxes > 1 ? location * block.columns : 0;
    for (int64_t from = 0; from < block.columns; from += kStrip) {
      const int64_t width = std::min(kStrip, block.columns - from);
      const float* const stored = block.row(image, location) + from;
      const float* const weight = of.weight + place + from;
      const float* const neg = of.neg + place + from;
      const float* const penalty = of.penalty + from;
      for (int64_t i = 0; i < width; ++i) found[i] = negatives(stored[i], weight[i], neg[i]);
      for (int64_t i = block.own(image, from); i < from + width; i += block.sources) {
        found[i - from] = of.own[i * block.locations + location];
      }
      float* const to = out + row * block.columns + from;
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) to[i] = found[i] + penalty[i] * stored[i];
    }
  }
}

AMDIM_SCORES void write_clipped(const Block& block, const RowTerms& of, int64_t first, int64_t last,
                                float* out, float clip) {
  write_images(block, of, first, last, out, [&](float stored, float weight, float neg) {
    return of_clipped(stored, weight, neg, clip);
  });
}

AMDIM_SCORES void write_unclipped(const Block& block, const RowTerms& of, int64_t first,
                                  int64_t last, float* out) {
  write_images(block, of, first, last, out, [&](float stored, float weight, float neg) {
    return of_unclipped(stored, weight, neg);
  });
}

void score_gradients(const Tensor& out, const Tensor& scores, const Tensor& own,
                     const Tensor& weight, const Tensor& neg, const Tensor& penalty,
                     int64_t sources, int64_t first_row, int64_t offset,
                     std::optional<double> clip) {
  STD_TORCH_CHECK(own.dim() == 2 && weight.dim() == 2, "own and weight must be matrices");
  const Block block(scores, own.size(1), sources, first_row, offset);
  const int64_t softmaxes = weight.size(0);
  block.check(softmaxes);
  const RowTerms of{data_of(own, {block.columns, block.locations}),
                     data_of(weight, {softmaxes, block.columns}),
                     data_of(neg, {softmaxes, block.columns}), data_of(penalty, {block.columns}),
                     softmaxes};
  float* const to = data_of(out, {block.images * block.locations, block.columns});
  const int64_t parts =
      std::min({block.images, 4 * threads(), divided(block.count(), kLeastScores)});
  hand_out(parts, [&](int64_t part) {
    const int64_t first = part * block.images / parts, last = (part + 1) * block.images / parts;
    if (clip) {
      write_clipped(block, of, first, last, to, static_cast<float>(*clip));
    } else {
      write_unclipped(block, of, first, last, to);
    }
  });
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) {
  m.impl("score_gradients_", TORCH_BOX(&amdim::score_gradients));
}
