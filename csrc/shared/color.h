// Color jitter and grayscale of a group of pixels side by side, in registers.
#pragma once

#include "view.h"

namespace amdim {

template <int LANES>
struct Pixels {
  float red[LANES], green[LANES], blue[LANES];
};

constexpr int kGrayscale = kOperations;

// What one view does to its pixels, in order. Contrast is the one step that needs the mean luma of all
// pixels: steps before it come first, for every pixel, and those from it on need the mean.
struct Recipe {
  int32_t operation[kOperations + 1];
  float amount[kOperations + 1];
  int steps;
  int mean_step;  // the step of contrast; ``steps`` if there is none

  AMDIM_HD bool needs_mean() const { return mean_step < steps; }
};

AMDIM_HD Recipe recipe_of(const View& view) {
  Recipe recipe;
  recipe.steps = 0;
  recipe.mean_step = kOperations + 1;
  for (int step = 0; view.flags & kJitter && step < kOperations; ++step) {
    const int operation = view.order[step];
    const float factor = view.factor[operation];
    if (operation == kContrast) recipe.mean_step = step;
    recipe.operation[step] = operation;
    recipe.amount[step] =
        operation == kHue ? static_cast<float>(hue_steps(factor) & 0xFF) : factor;
    recipe.steps = step + 1;
  }
  if (view.flags & kGray) {
    recipe.operation[recipe.steps] = kGrayscale;
    recipe.steps += 1;
  }
  recipe.mean_step = smaller(recipe.mean_step, recipe.steps);
  return recipe;
}

template <int LANES, class Change>
AMDIM_HD void change_each(Pixels<LANES>& pixels, Change change) {
  AMDIM_LANE_LOOP
  for (int lane = 0; lane < LANES; ++lane) {
    const Rgb changed = change(Rgb{pixels.red[lane], pixels.green[lane], pixels.blue[lane]});
    pixels.red[lane] = changed.red;
    pixels.green[lane] = changed.green;
    pixels.blue[lane] = changed.blue;
  }
}

// Steps begin .. end - 1 of the recipe; mean is that of contrast's input.
template <int LANES>
AMDIM_HD void adjust(const Recipe& recipe, int begin, int end, float mean, Pixels<LANES>& pixels) {
  auto mix = [](float degenerate, Rgb pixel, float factor) {
    return Rgb{blend(degenerate, pixel.red, factor), blend(degenerate, pixel.green, factor),
               blend(degenerate, pixel.blue, factor)};
  };
  for (int step = begin; step < end; ++step) {
    const int operation = recipe.operation[step];
    const float amount = recipe.amount[step];
    if (operation == kBrightness || operation == kContrast) {
      const float degenerate = operation == kContrast ? mean : 0.0f;
      change_each(pixels, [&](Rgb pixel) { return mix(degenerate, pixel, amount); });
    } else if (operation == kSaturation) {
      change_each(pixels, [&](Rgb pixel) { return mix(luma(pixel), pixel, amount); });
    } else if (operation == kHue) {
      change_each(pixels, [&](Rgb pixel) { return turn_hue(pixel, amount); });
    } else {
      change_each(pixels, [](Rgb pixel) {
        const float level = luma(pixel);
        return Rgb{level, level, level};
      });
    }
  }
}

// Sum of the lumas of the first ``wanted`` pixels.
template <int LANES>
AMDIM_HD int luma_sum(const Pixels<LANES>& pixels, int wanted) {
  int sum = 0;
  AMDIM_LANE_LOOP
  for (int lane = 0; lane < LANES; ++lane) {
    const int level = as_index(luma({pixels.red[lane], pixels.green[lane], pixels.blue[lane]}));
    sum += level * (lane < wanted);
  }
  return sum;
}

}  // namespace amdim
