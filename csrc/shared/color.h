// Color jitter and grayscale of one view's pixels, and their normalized output.
#pragma once

#include "team.h"
#include "view.h"

namespace amdim {

// Mean luma of the view, the same in every thread; integer sums, so their order does not matter.
template <class Team>
AMDIM_HD int mean_luma(const Team& team, const uint8_t* pixels, int size, long long* partials) {
  const int area = size * size;
  long long sum = 0;
  for (int i = team.index; i < area; i += team.count) {
    sum += luma({pixels[i], pixels[area + i], pixels[2 * area + i]});
  }
  partials[team.index] = sum;
  team.sync(kPartialsReady);
  for (int terms = team.count; terms > 1;) {
    const int half = (terms + 1) / 2;
    if (team.index + half < terms) partials[team.index] += partials[team.index + half];
    team.sync(kPartialsAdded);
    terms = half;
  }
  return rounded_mean(partials[0], area);
}

// Adjusts pixels [3, size, size] in place, in the view's own order; each thread keeps its pixels.
template <class Team>
AMDIM_HD void jitter(const Team& team, const View& view, int size, uint8_t* pixels,
                     long long* partials) {
  const int area = size * size;
  uint8_t* __restrict__ red = pixels;
  uint8_t* __restrict__ green = pixels + area;
  uint8_t* __restrict__ blue = pixels + 2 * area;
  auto adjust = [&](auto change) {
    for (int i = team.index; i < area; i += team.count) {
      const Rgb changed = change(Rgb{red[i], green[i], blue[i]});
      red[i] = static_cast<uint8_t>(changed.red);
      green[i] = static_cast<uint8_t>(changed.green);
      blue[i] = static_cast<uint8_t>(changed.blue);
    }
  };
  auto mix = [](int degenerate, Rgb pixel, float factor) {
    return Rgb{blend(degenerate, pixel.red, factor), blend(degenerate, pixel.green, factor),
               blend(degenerate, pixel.blue, factor)};
  };
  for (int step = 0; view.flags & kJitter && step < kOperations; ++step) {
    const int operation = view.order[step];
    const float factor = view.factor[operation];
    if (operation == kBrightness) {
      adjust([&](Rgb pixel) { return mix(0, pixel, factor); });
    } else if (operation == kContrast) {
      const int mean = mean_luma(team, pixels, size, partials);
      adjust([&](Rgb pixel) { return mix(mean, pixel, factor); });
    } else if (operation == kSaturation) {
      adjust([&](Rgb pixel) { return mix(luma(pixel), pixel, factor); });
    } else {
      const int steps = hue_steps(factor);
      adjust([&](Rgb pixel) { return turn_hue(pixel, steps); });
    }
  }
  if (view.flags & kGray) {
    adjust([](Rgb pixel) {
      const int level = luma(pixel);
      return Rgb{level, level, level};
    });
  }
}

// Looks each level up in table [3, 256] and writes out [3, size, size], or [size, size, 3]; each thread
// writes the pixels it has adjusted.
template <class T, class Team>
AMDIM_HD void write_view(const Team& team, const uint8_t* __restrict__ pixels, int size,
                         const T* __restrict__ table, bool channels_last, T* __restrict__ out) {
  const int area = size * size;
  const int64_t pixel_step = channels_last ? 3 : 1, channel_step = channels_last ? 1 : area;
  for (int channel = 0; channel < 3; ++channel) {
    const T* levels = table + 256 * channel;
    T* plane = out + channel * channel_step;
    for (int i = team.index; i < area; i += team.count) {
      plane[i * pixel_step] = levels[pixels[channel * area + i]];
    }
  }
}

}  // namespace amdim
