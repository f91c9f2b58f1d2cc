// Sums over the negatives of each source, of scores that are read once.

// Unlike in views, products may be fused with sums.
#pragma GCC optimize("fp-contract=fast")

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "score_block.h"

namespace amdim {
namespace {

using torch::stable::Tensor;

// Most sums of parts, 2 MiB.
constexpr int64_t kMostSums = 1 << 19;
constexpr int64_t kMostParts = 32;
// Rows of a softmax that are summed before others are added, since each addition is rounded.
constexpr int64_t kRows = 64;
constexpr float kNothing = std::numeric_limits<float>::lowest();

// Sums of exp(score - clip).
struct Clipped {
  float clip;

  AMDIM_INLINE void add_score(float stored, float& total, float&) const {
    const float v = 1.0f / (1.0f + exp2_of(-kLog2E * stored));
    total += exp2_of(-2.0f * kLog2E * clip * v);
  }

  AMDIM_INLINE void add_sum(float sum, float, float& total, float&) const { total += sum; }

  float shift(float) const { return clip; }
};

// Sums of exp(score - largest), with one exponential for each: what has the smaller shift is scaled.
struct Unclipped {
  AMDIM_INLINE void add_score(float score, float& total, float& largest) const {
    add_sum(1.0f, score, total, largest);
  }

  AMDIM_INLINE void add_sum(float sum, float shift, float& total, float& largest) const {
    const float above = shift - largest, e = exp2_of(-kLog2E * std::abs(above));
    total = above > 0.0f ? total * e + sum : total + sum * e;
    largest = above > 0.0f ? shift : largest;
  }

  float shift(float largest) const { return largest; }
};

// Of some images: of the negatives of each source [M, columns], for each location or all, and of
// stored^2 [columns]. With a clip ``largest`` has no room of its own and no use.
struct Sums {
  float *total, *square, *largest;

  Sums(float* found, int64_t places, int64_t columns, bool clipped)
      : total(found), square(total + places), largest(clipped ? total : square + columns) {
    if (!clipped) std::fill_n(largest, places, kNothing);
  }

  static int64_t size(int64_t places, int64_t columns, bool clipped) {
    return (clipped ? places : 2 * places) + columns;
  }
};

// Some images and columns of a block.
struct Piece {
  const Block& block;
  int64_t first, last, from, width;
  bool apart;  // whether each location has a softmax of its own
};

template <class Form>
AMDIM_INLINE void add_row(const Form& form, const float* row, int64_t width, float* total,
                          float* largest, float* square) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; ++i) {
    form.add_score(row[i], total[i], largest[i]);
    square[i] += row[i] * row[i];
  }
}

template <class Form>
AMDIM_INLINE void move_sums(const Form& form, int64_t width, Strip& total, Strip& largest,
                            float* to_total, float* to_largest) {
#pragma GCC ivdep
  for (int64_t i = 0; i < width; ++i) {
    form.add_sum(total[i], largest[i], to_total[i], to_largest[i]);
    total[i] = 0.0f;
    largest[i] = kNothing;
  }
}

// Adds the rows of a piece, and copies stored scores with own images to [columns, L].
template <class Form>
AMDIM_INLINE void add_piece(const Form& form, const Piece& piece, const Sums& to, float* own) {
  const Block& block = piece.block;
  const int64_t from = piece.from, width = piece.width;
  Strip totals{}, largests, squares{}, kept_total, kept_largest;
  largests.fill(kNothing);
  int64_t rows = 0;
  for (int64_t image = piece.first; image < piece.last; ++image) {
    const int64_t first_own = block.own(image, from) - from;
    for (int64_t location = 0; location < block.locations; ++location) {
      const float* const row = block.row(image, location) + from;
      const int64_t place = location * block.columns + from;
      float* const total = piece.apart ? to.total + place : totals.data();
      float* const largest = piece.apart ? to.largest + place : largests.data();
      for (int64_t i = first_own; i < width; i += block.sources) {
        kept_total[i] = total[i];
        kept_largest[i] = largest[i];
      }
      add_row(form, row, width, total, largest, squares.data());
      for (int64_t i = first_own; i < width; i += block.sources) {
        total[i] = kept_total[i];
        largest[i] = kept_largest[i];
        own[(from + i) * block.locations + location] = row[i];
      }
      const bool last = image + 1 == piece.last && location + 1 == block.locations;
      if (++rows % kRows != 0 && !last) continue;
      if (!piece.apart) move_sums(form, width, totals, largests, to.total + from, to.largest + from);
      for (int64_t i = 0; i < width; ++i) {
        to.square[from + i] += squares[i];
        squares[i] = 0.0f;
      }
    }
  }
}

// Log-sums over all parts, for some of [M * columns] places.
template <class Form>
AMDIM_INLINE void add_parts(const Form& form, const std::vector<Sums>& parts, int64_t first,
                            int64_t last, float* neg) {
  Strip total{}, largest;
  largest.fill(kNothing);
  const int64_t width = last - first;
  for (const Sums& part : parts) {
    const float *const totals = part.total + first, *const largests = part.largest + first;
    for (int64_t i = 0; i < width; ++i) form.add_sum(totals[i], largests[i], total[i], largest[i]);
  }
  for (int64_t i = 0; i < width; ++i) neg[first + i] = std::log(total[i]) + form.shift(largest[i]);
}

AMDIM_SCORES void add_clipped(const Clipped& form, const Piece& piece, const Sums& to, float* own) {
  add_piece(form, piece, to, own);
}

AMDIM_SCORES void add_unclipped(const Piece& piece, const Sums& to, float* own) {
  add_piece(Unclipped(), piece, to, own);
}

AMDIM_SCORES void add_unclipped_parts(const std::vector<Sums>& parts, int64_t first, int64_t last,
                                      float* neg) {
  add_parts(Unclipped(), parts, first, last, neg);
}

// Parts are by sizes alone, so that sums are the same with any number of threads.
void score_sums(const Tensor& neg, const Tensor& square, const Tensor& own, const Tensor& scores,
                int64_t sources, int64_t first_row, int64_t offset, std::optional<double> clip) {
  STD_TORCH_CHECK(own.dim() == 2 && neg.dim() == 2, "own and neg must be matrices");
  const Block block(scores, own.size(1), sources, first_row, offset);
  const int64_t softmaxes = neg.size(0), columns = block.columns, places = softmaxes * columns;
  block.check(softmaxes);
  float* const log_sums = data_of(neg, {softmaxes, columns});
  float* const squares = data_of(square, {columns});
  float* const with_own = data_of(own, {columns, block.locations});
  if (columns == 0) return;
  const Clipped clipped{static_cast<float>(clip.value_or(0.0))};
  const int64_t size = Sums::size(places, columns, clip.has_value());
  const int64_t most = std::min({block.images, kMostParts, divided(block.count(), kLeastScores)});
  const int64_t count = std::min(most, std::max<int64_t>(1, kMostSums / size));
  std::vector<float> found(count * size);
  std::vector<Sums> parts;
  for (int64_t part = 0; part < count; ++part) {
    parts.emplace_back(found.data() + part * size, places, columns, clip.has_value());
  }
  const int64_t strips = divided(columns, kStrip), width = divided(columns, strips);
  hand_out(count * strips, [&](int64_t task) {
    const int64_t part = task / strips, from = task % strips * width;
    const Piece piece{block, part * block.images / count, (part + 1) * block.images / count, from,
                      std::min(width, columns - from), softmaxes > 1};
    if (clip) {
      add_clipped(clipped, piece, parts[part], with_own);
    } else {
      add_unclipped(piece, parts[part], with_own);
    }
  });
  hand_out(divided(places, kStrip), [&](int64_t strip) {
    const int64_t first = strip * kStrip, last = std::min(places, first + kStrip);
    if (clip) {
      add_parts(clipped, parts, first, last, log_sums);
    } else {
      add_unclipped_parts(parts, first, last, log_sums);
    }
  });
  std::fill_n(squares, columns, 0.0f);
  for (const Sums& part : parts) {
    for (int64_t i = 0; i < columns; ++i) squares[i] += part.square[i];
  }
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) {
  m.impl("score_sums_", TORCH_BOX(&amdim::score_sums));
}
