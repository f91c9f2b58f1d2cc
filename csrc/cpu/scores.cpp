// What is computed from each score of a block, in float32. Stored is -2 raw / clip, and with
// v = sigmoid(stored) the score is clip - 2 clip v.

// Unlike in views, products may be fused with sums.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <numbers>
#include <vector>

#include "clones.h"
#include "hand_out.h"

#define AMDIM_SCORES AMDIM_CLONES("avx512f", "avx2")

namespace amdim {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Columns whose sums stay in the first cache.
constexpr int64_t kStrip = 2048;
// Scores that are worth handing out, and most sums of parts, 2 MiB.
constexpr int64_t kLeastScores = 1 << 14, kMostSums = 1 << 19;
constexpr int64_t kMostParts = 32;
constexpr float kLog2E = std::numbers::log2e_v<float>;

using Strip = std::array<float, kStrip>;

int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }

float* data_of(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  bool fits = tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
              tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = tensor.size(i) == sizes.begin()[i];
  STD_TORCH_CHECK(fits, "scores, and what belongs to them, must be contiguous float32 that fit");
  return static_cast<float*>(tensor.data_ptr());
}

// 2^x with an error of one unit in the last place; 0 below 2^-126 and 2^127 above.
inline __attribute__((always_inline)) float exp2_of(float x) {
  constexpr float kRounding = 0x1.8p23f;
  const float limited = x > 127.0f ? 127.0f : x;
  const float shifted = limited + kRounding;
  const float f = limited - (shifted - kRounding);
  float p = 1.534581159e-4f;
  p = p * f + 1.339993122e-3f;
  p = p * f + 9.618488959e-3f;
  p = p * f + 5.550328777e-2f;
  p = p * f + 2.402264689e-1f;
  p = p * f + 6.931472057e-1f;
  p = p * f + 1.0f;
  const auto bits = std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23);
  return x < -126.0f ? 0.0f : std::bit_cast<float>(bits);
}

// [images * locations, columns] scores of target images with source rows, sets of ``sources`` after
// one another. The own image of source b is b + offset.
struct Block {
  const float* scores;
  int64_t images, locations, columns, sources, first_row, offset;

  const float* row(int64_t image, int64_t location) const {
    return scores + (image * locations + location) * columns;
  }

  int64_t count() const { return images * locations * columns; }

  // First column at or after ``from`` whose own image this is; every sources-th one after it is too.
  int64_t own(int64_t image, int64_t from) const {
    const int64_t source = image - offset;
    if (source < 0 || source >= sources) return columns;
    const int64_t ahead = (source - first_row - from) % sources;
    return from + (ahead < 0 ? ahead + sources : ahead);
  }
};

Block block_of(const Tensor& scores, int64_t locations, int64_t sources, int64_t first_row,
               int64_t offset) {
  STD_TORCH_CHECK(scores.dim() == 2 && locations > 0 && sources > 0,
                  "scores must be a matrix, of locations and sources");
  const int64_t images = scores.size(0) / locations, columns = scores.size(1);
  const float* data = data_of(scores, {images * locations, columns});
  return {data, images, locations, columns, sources, first_row, offset};
}

inline __attribute__((always_inline)) void move_sums(float* to, Strip& from, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    to[i] += from[i];
    from[i] = 0.0f;
  }
}

// Adds some images to sums [M + 1, columns]: of exp(score - clip) over the negatives of each source,
// for each location or all, and of stored^2. Copies stored scores with own images to [columns, L].
AMDIM_SCORES void add_images(const Block& block, int64_t first, int64_t last, int64_t from,
                             int64_t width, float factor, int64_t softmaxes, float* sums,
                             float* own) {
  Strip negatives{}, squares{};
  for (int64_t image = first; image < last; ++image) {
    const int64_t first_own = block.own(image, from);
    for (int64_t location = 0; location < block.locations; ++location) {
      const float* const row = block.row(image, location) + from;
      for (int64_t i = 0; i < width; ++i) {
        const float v = 1.0f / (1.0f + exp2_of(-kLog2E * row[i]));
        negatives[i] += exp2_of(factor * v);
        squares[i] += row[i] * row[i];
      }
      for (int64_t i = first_own; i < from + width; i += block.sources) {
        own[i * block.locations + location] = row[i - from];
        negatives[i - from] = 0.0f;
      }
      if (softmaxes > 1) move_sums(sums + location * block.columns + from, negatives, width);
    }
    if (softmaxes == 1) move_sums(sums + from, negatives, width);
    move_sums(sums + softmaxes * block.columns + from, squares, width);
  }
}

// Parts are by sizes alone, so that sums are the same with any number of threads.
void score_sums(const Tensor& sums, const Tensor& own, const Tensor& scores, int64_t sources,
                int64_t first_row, int64_t offset, double clip) {
  STD_TORCH_CHECK(own.dim() == 2 && sums.dim() == 2, "own and sums must be matrices");
  const Block block = block_of(scores, own.size(1), sources, first_row, offset);
  const int64_t softmaxes = sums.size(0) - 1, size = sums.size(0) * block.columns;
  STD_TORCH_CHECK(softmaxes == 1 || softmaxes == block.locations, "sums must be of 1 or L softmaxes");
  float* const total = data_of(sums, {softmaxes + 1, block.columns});
  float* const with_own = data_of(own, {block.columns, block.locations});
  std::fill_n(total, size, 0.0f);
  if (block.count() == 0) return;
  const int64_t most = std::min({block.images, kMostParts, divided(block.count(), kLeastScores)});
  const int64_t parts = std::clamp<int64_t>(kMostSums / size, 1, most);
  const int64_t strips = divided(block.columns, kStrip), width = divided(block.columns, strips);
  std::vector<float> found(parts * size);
  const float factor = -2.0f * kLog2E * static_cast<float>(clip);
  hand_out(parts * strips, [&](int64_t task) {
    const int64_t part = task / strips, from = task % strips * width;
    add_images(block, part * block.images / parts, (part + 1) * block.images / parts, from,
               std::min(width, block.columns - from), factor, softmaxes, found.data() + part * size,
               with_own);
  });
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < size; ++i) total[i] += found[part * size + i];
  }
}

// Of the raw product: of its negatives, weight * exp(score - neg) * slope / 4, where exponent is
// log2(exp(clip - neg)); or, with own images, own. And penalty * stored.
struct Gradients {
  const float *own, *weight, *exponent, *penalty;
  int64_t softmaxes;
  float factor;
};

AMDIM_SCORES void write_images(const Block& block, const Gradients& of, int64_t first, int64_t last,
                               float* out) {
  Strip found;
  for (int64_t row = first * block.locations; row < last * block.locations; ++row) {
    const int64_t image = row / block.locations, location = row % block.locations;
    const int64_t place = of.softmaxes > 1 ? location * block.columns : 0;
    for (int64_t from = 0; from < block.columns; from += kStrip) {
      const int64_t width = std::min(kStrip, block.columns - from);
      const float* const stored = block.row(image, location) + from;
      const float* const weight = of.weight + place + from;
      const float* const exponent = of.exponent + place + from;
      const float* const penalty = of.penalty + from;
      for (int64_t i = 0; i < width; ++i) {
        const float e = exp2_of(-kLog2E * stored[i]), v = 1.0f / (1.0f + e);
        found[i] = weight[i] * (e * v * v * exp2_of(exponent[i] + of.factor * v));
      }
      for (int64_t i = block.own(image, from); i < from + width; i += block.sources) {
        found[i - from] = of.own[i * block.locations + location];
      }
      float* const to = out + row * block.columns + from;
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) to[i] = found[i] + penalty[i] * stored[i];
    }
  }
}

void score_gradients(const Tensor& out, const Tensor& scores, const Tensor& own,
                     const Tensor& weight, const Tensor& exponent, const Tensor& penalty,
                     int64_t sources, int64_t first_row, int64_t offset, double clip) {
  STD_TORCH_CHECK(own.dim() == 2 && weight.dim() == 2, "own and weight must be matrices");
  const Block block = block_of(scores, own.size(1), sources, first_row, offset);
  const int64_t softmaxes = weight.size(0);
  STD_TORCH_CHECK(softmaxes == 1 || softmaxes == block.locations, "weight must be of 1 or L softmaxes");
  const Gradients of{data_of(own, {block.columns, block.locations}),
                     data_of(weight, {softmaxes, block.columns}),
                     data_of(exponent, {softmaxes, block.columns}),
                     data_of(penalty, {block.columns}),
                     softmaxes,
                     -2.0f * kLog2E * static_cast<float>(clip)};
  float* const to = data_of(out, {block.images * block.locations, block.columns});
  if (block.count() == 0) return;
  const int64_t most = 4 * torch::stable::get_num_threads();
  const int64_t parts = std::min({block.images, most, divided(block.count(), kLeastScores)});
  hand_out(parts, [&](int64_t part) {
    write_images(block, of, part * block.images / parts, (part + 1) * block.images / parts, to);
  });
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) {
  m.impl("score_sums_", TORCH_BOX(&amdim::score_sums));
  m.impl("score_gradients_", TORCH_BOX(&amdim::score_gradients));
}
