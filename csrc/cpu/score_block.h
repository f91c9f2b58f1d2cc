// A block of stored float32 scores, and the exponential. With a clip, stored is -2 raw / clip and the
// score is clip - clip u with u = 2 sigmoid(stored); without one both are the raw score.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <numbers>

#include "clones.h"
#include "hand_out.h"

#define AMDIM_SCORES AMDIM_CLONES("avx512f", AMDIM_AVX2_FMA)
#define AMDIM_INLINE inline __attribute__((always_inline))

namespace amdim {

// Columns whose sums stay in the first cache.
constexpr int64_t kStrip = 2048;
// Scores that are worth handing out.
constexpr int64_t kLeastScores = 1 << 14;
constexpr float kLog2E = std::numbers::log2e_v<float>;

using Strip = std::array<float, kStrip>;

inline float* data_of(const torch::stable::Tensor& tensor, std::initializer_list<int64_t> sizes) {
  bool fits = tensor.scalar_type() == torch::headeronly::ScalarType::Float &&
              tensor.is_contiguous() && tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t i = 0; fits && i < sizes.size(); ++i) fits = tensor.size(i) == sizes.begin()[i];
  STD_TORCH_CHECK(fits, "scores, and what belongs to them, must be contiguous float32 that fit");
  return static_cast<float*>(tensor.data_ptr());
}

// 2^x with an error of one unit in the last place; 0 below 2^-126 and 2^127 above.
AMDIM_INLINE float exp2_of(float x) {
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

  Block(const torch::stable::Tensor& stored, int64_t locations, int64_t sources, int64_t first_row,
        int64_t offset)
      : locations(locations), sources(sources), first_row(first_row), offset(offset) {
    STD_TORCH_CHECK(stored.dim() == 2 && locations > 0 && sources > 0,
                    "scores must be a matrix, of locations and sources");
    images = stored.size(0) / locations;
    columns = stored.size(1);
    scores = data_of(stored, {images * locations, columns});
  }

  // Whether so many softmaxes are one over all locations, or one for each.
  void check(int64_t softmaxes) const {
    STD_TORCH_CHECK(softmaxes == 1 || softmaxes == locations, "there must be 1 or L softmaxes");
  }

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

}  // namespace amdim
