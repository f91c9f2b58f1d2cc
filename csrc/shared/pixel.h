// Color of one pixel as Pillow computes it on uint8, bit for bit. Levels are ints in 0..255.
#pragma once

#include "macros.h"

namespace amdim {

struct Rgb {
  int red, green, blue;
};

struct Hsv {
  int hue, saturation, value;
};

AMDIM_HD int smaller(int a, int b) { return a < b ? a : b; }
AMDIM_HD int larger(int a, int b) { return a > b ? a : b; }

// Luma of ITU-R 601, rounded.
AMDIM_HD int luma(Rgb pixel) {
  return (19595 * pixel.red + 38470 * pixel.green + 7471 * pixel.blue + 0x8000) >> 16;
}

// degenerate + factor * (level - degenerate), clamped and truncated; factor finite and >= 0.
AMDIM_HD int blend(int degenerate, int level, float factor) {
  const float start = static_cast<float>(degenerate);
  const float scaled = factor * static_cast<float>(level - degenerate);
  const float mixed = start + scaled;
  const float raised = mixed > 0.0f ? mixed : 0.0f;
  return static_cast<int>(raised < 255.0f ? raised : 255.0f);
}

// Mean of count lumas that sum to total, rounded, halves up.
AMDIM_HD int rounded_mean(long long total, long long count) {
  return static_cast<int>((2 * total + count) / (2 * count));
}

// floor(a / b) for 0 <= a < 2^24 and 0 < b: no float quotient below an integer rounds up to it.
AMDIM_HD int quotient(int a, int b) {
  return static_cast<int>(static_cast<float>(a) / static_cast<float>(b));
}

// Whole steps of 1/255 turn, towards zero.
AMDIM_HD int hue_steps(float turns) {
  return static_cast<int>(static_cast<double>(turns) * 255.0);
}

// Pillow's 8-bit HSV.
AMDIM_HD Hsv rgb_to_hsv(Rgb pixel) {
  const int high = larger(larger(pixel.red, pixel.green), pixel.blue);
  const int low = smaller(smaller(pixel.red, pixel.green), pixel.blue);
  const bool red_leads = pixel.red == high;
  const bool green_leads = pixel.green == high;
  const int after = red_leads ? pixel.blue : (green_leads ? pixel.red : pixel.green);
  const int before = red_leads ? pixel.green : (green_leads ? pixel.blue : pixel.red);
  const double base = red_leads ? 0.0 : (green_leads ? 2.0 : 4.0);
  const float chroma = static_cast<float>(larger(high - low, 1));
  const float plus = static_cast<float>(high - after) / chroma;
  const float minus = static_cast<float>(high - before) / chroma;
  const float sixths =
      static_cast<float>(base + static_cast<double>(plus) - static_cast<double>(minus));
  // Multiplying by 1/6 gives the same hue as dividing by 6 for every color.
  const double turns = static_cast<double>(sixths) * (1.0 / 6.0) + 1.0;
  const float turn = static_cast<float>(turns - static_cast<double>(static_cast<int>(turns)));
  return {static_cast<int>(static_cast<double>(turn) * 255.0),
          quotient(255 * (high - low), larger(high, 1)), high};
}

// Sextants are 0..6, where 6 is 0 again. A sextant whose bit is set in highs takes high, in lows
// low, else middle. Arithmetic instead of branches, so that loops vectorize.
AMDIM_HD int by_sextant(int sextant, int highs, int lows, int high, int middle, int low) {
  return middle + (highs >> sextant & 1) * (high - middle) + (lows >> sextant & 1) * (low - middle);
}

// Exact in integers; every quotient is rounded, and no half occurs.
AMDIM_HD Rgb hsv_to_rgb(Hsv pixel) {
  const int sixfold = 6 * pixel.hue;
  const int sextant = quotient(sixfold, 255);
  const int fraction = sixfold - 255 * sextant;
  const int odd = sextant & 1;  // the middle channel falls in odd sextants and rises in even ones
  const int share = odd * fraction + (1 - odd) * (255 - fraction);
  const int high = pixel.value;
  const int middle = quotient(high * (65025 - pixel.saturation * share) + 32512, 65025);
  const int low = quotient(high * (255 - pixel.saturation) + 127, 255);
  return {by_sextant(sextant, 0b1100001, 0b0001100, high, middle, low),
          by_sextant(sextant, 0b0000110, 0b0110000, high, middle, low),
          by_sextant(sextant, 0b0011000, 0b1000011, high, middle, low)};
}

// Turns the hue by whole steps of 1/255, through 8-bit HSV.
AMDIM_HD Rgb turn_hue(Rgb pixel, int steps) {
  Hsv turned = rgb_to_hsv(pixel);
  turned.hue = (turned.hue + steps) & 0xFF;
  return hsv_to_rgb(turned);
}

}  // namespace amdim
