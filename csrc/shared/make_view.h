// The block functions. A view is made in tiles of rows by teams that need not know one another: the
// first phase does all that needs no mean, the second, after all tiles of the first, the rest.
#pragma once

#include "output.h"
#include "resample.h"

namespace amdim {

// Sum of one number a thread, in thread 0; integers, so their order does not matter.
template <class Team>
AMDIM_HD long long team_sum(const Team& team, long long term, long long* partials) {
  partials[team.index] = term;
  team.sync(kPartialsReady);
  for (int terms = team.count; terms > 1;) {
    const int half = (terms + 1) / 2;
    if (team.index + half < terms) partials[team.index] += partials[team.index + half];
    if (half > 1) team.sync(kPartialsAdded);
    terms = half;
  }
  return partials[0];
}

// One view, ready to be made: the same for all threads and tiles.
struct Plan {
  Image image;
  View view;  // clamped
  Recipe recipe;
};

AMDIM_HD Plan plan_of(const Image& image, const View& requested, int size) {
  const View view = clamped(requested, image.height, image.width, size);
  return {image, view, recipe_of(view)};
}

// Phase one, rows of one view. A view that needs no mean is painted; else its pixels are put aside as
// they are before contrast, and ``luma_total`` becomes the sum of their lumas. Writes nothing if the
// scratch memory is too small.
template <int LANES, class T, class Team>
AMDIM_HD void begin_rows(const Team& team, const Plan& plan, const Rows& rows,
                         const Canvas<T>& canvas, const Waiting<LANES>& waiting,
                         const Scratch<LANES>& scratch, long long* luma_total) {
  if (scratch.ring_slabs == 0) return;
  const int size = canvas.size;
  const Recipe& recipe = plan.recipe;
  long long sum = 0;
  resample<LANES>(team, plan.image, plan.view, size, rows, scratch,
                  [&](int row, int group, Pixels<LANES>& pixels) {
                    adjust(recipe, 0, recipe.mean_step, 0.0f, pixels);
                    if (recipe.needs_mean()) {
                      put_aside(pixels, waiting, row, group);
                      sum += luma_sum(pixels, size - group * LANES);
                    } else {
                      paint(pixels, canvas, row, group * LANES);
                    }
                  });
  if (recipe.needs_mean()) {
    const long long total = team_sum(team, sum, scratch.partials);
    if (team.index == 0) *luma_total = total;
  }
}

// Phase two, rows of one view that needs a mean; luma_totals: of each of its tiles. No barriers: each
// thread reads what phase one has put aside.
template <int LANES, class T, class Team>
AMDIM_HD void finish_rows(const Team& team, const Plan& plan, const Rows& rows,
                          const Canvas<T>& canvas, const Waiting<LANES>& waiting,
                          const long long* luma_totals, int tiles) {
  const Recipe& recipe = plan.recipe;
  if (!recipe.needs_mean()) return;
  long long total = 0;
  for (int tile = 0; tile < tiles; ++tile) total += luma_totals[tile];
  const int64_t area = static_cast<int64_t>(canvas.size) * canvas.size;
  const float mean = as_level(rounded_mean(total, area));
  const Share share = share_of(team, waiting.pitch);
  for (int row = rows.begin + share.row; row < rows.end; row += share.rows) {
    for (int group = share.column; group < waiting.pitch; group += share.columns) {
      Pixels<LANES> pixels = take_back(waiting, row, group);
      adjust(recipe, recipe.mean_step, recipe.steps, mean, pixels);
      paint(pixels, canvas, row, group * LANES);
    }
  }
}

}  // namespace amdim
