// Antialiased bicubic weights along one axis, as Pillow computes them: double, then 22-bit integers.
#pragma once

#include <cmath>
#include <cstdint>

#include "pixel.h"

namespace amdim {

constexpr int kWeightBits = 22;

// Taps of one output place: source pixels first .. first + count - 1 of the crop.
struct Taps {
  int first, count;
};

// Keys' kernel, a = -0.5.
AMDIM_HD double cubic(double x) {
  x = x < 0.0 ? -x : x;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
  return 0.0;
}

// Largest number of taps of any place; odd.
AMDIM_HD int tap_limit(int length, int output) {
  const double scale = static_cast<double>(length) / static_cast<double>(output);
  return 2 * static_cast<int>(ceil(2.0 * (scale < 1.0 ? 1.0 : scale))) + 1;
}

// Writes the weights of output place 0 .. output - 1; they read pixels 0 .. length - 1 only.
AMDIM_HD Taps bicubic_taps(int place, int length, int output, int32_t* weights) {
  const double scale = static_cast<double>(length) / static_cast<double>(output);
  const double filter_scale = scale < 1.0 ? 1.0 : scale;
  const double support = 2.0 * filter_scale;
  const double center = (place + 0.5) * scale;
  const double step = 1.0 / filter_scale;
  const int first = larger(static_cast<int>(center - support + 0.5), 0);
  const int last = smaller(static_cast<int>(center + support + 0.5), length);
  const int count = larger(smaller(last - first, tap_limit(length, output)), 0);
  double total = 0.0;
  for (int tap = 0; tap < count; ++tap) total += cubic((first + tap - center + 0.5) * step);
  for (int tap = 0; tap < count; ++tap) {
    const double weight = cubic((first + tap - center + 0.5) * step);
    const double scaled = weight / total * static_cast<double>(1 << kWeightBits);
    weights[tap] = static_cast<int32_t>(scaled + (weight < 0.0 ? -0.5 : 0.5));
  }
  return {first, count};
}

AMDIM_HD int clamp_level(int fixed) { return smaller(larger(fixed >> kWeightBits, 0), 255); }

}  // namespace amdim
