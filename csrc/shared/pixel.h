// Color of one pixel as Pillow computes it on uint8, bit for bit. Levels are whole floats in 0..255.
#pragma once

#include "level.h"

namespace amdim {

struct Rgb {
  float red, green, blue;
};

struct Hsv {
  float hue, saturation, value;
};

AMDIM_HD int smaller(int a, int b) { return a < b ? a : b; }
AMDIM_HD int larger(int a, int b) { return a > b ? a : b; }
AMDIM_HD float smaller(float a, float b) { return a < b ? a : b; }
AMDIM_HD float larger(float a, float b) { return a > b ? a : b; }

// Luma of ITU-R 601, rounded; every sum is below 2^24, hence exact.
AMDIM_HD float luma(Rgb pixel) {
  const float sum = 19595.0f * pixel.red + 38470.0f * pixel.green + 7471.0f * pixel.blue;
  return whole((sum + 32768.0f) * (1.0f / 65536.0f));
}

// degenerate + factor * (level - degenerate), clamped and truncated; factor finite and >= 0.
AMDIM_HD float blend(float degenerate, float level, float factor) {
  const float scaled = factor * (level - degenerate);
  const float mixed = degenerate + scaled;
  const float raised = mixed > 0.0f ? mixed : 0.0f;
  return whole(raised < 255.0f ? raised : 255.0f);
}

// Mean of count lumas that sum to total, rounded, halves up.
AMDIM_HD int rounded_mean(long long total, long long count) {
  return static_cast<int>((2 * total + count) / (2 * count));
}

// Whole steps of 1/255 turn, towards zero.
AMDIM_HD int hue_steps(float turns) {
  return static_cast<int>(static_cast<double>(turns) * 255.0);
}

// Pillow's 8-bit HSV. Of its two quotients one is always 1, so that the sum of the rest is rounded
// once; no product of a turn and 255 rounds up to an integer.
AMDIM_HD Hsv rgb_to_hsv(Rgb pixel) {
  const float high = larger(larger(pixel.red, pixel.green), pixel.blue);
  const float low = smaller(smaller(pixel.red, pixel.green), pixel.blue);
  const bool red_leads = pixel.red == high;
  const bool green_leads = pixel.green == high;
  const float after = red_leads ? pixel.blue : (green_leads ? pixel.red : pixel.green);
  const float before = red_leads ? pixel.green : (green_leads ? pixel.blue : pixel.red);
  const float base = red_leads ? 0.0f : (green_leads ? 2.0f : 4.0f);
  const float chroma = high - low;
  const float middle = after == low ? before : after;
  const float share = (chroma > 0.0f ? high - middle : 1.0f) / larger(chroma, 1.0f);
  const float rising = base - 1.0f + share, falling = base + 1.0f - share;
  const float turn = (after == low ? falling : rising) / 6.0f;
  return {whole((turn < 0.0f ? turn + 1.0f : turn) * 255.0f),
          quotient(255.0f * chroma, larger(high, 1.0f)), high};
}

// Exact in whole numbers; every quotient is rounded, and no half occurs.
AMDIM_HD Rgb hsv_to_rgb(Hsv pixel) {
  const float sixfold = 6.0f * pixel.hue;
  const float sextant = quotient(sixfold, 255.0f);  // 0..6, where 6 is 0 again
  const float fraction = sixfold - 255.0f * sextant;
  const bool odd = sextant - 2.0f * whole(0.5f * sextant) == 1.0f;
  const float share = odd ? fraction : 255.0f - fraction;  // the middle channel falls in odd sextants
  const float high = pixel.value;
  const float middle =
      quotient(high * (65025.0f - pixel.saturation * share) + 32512.0f, 65025.0f);
  const float low = quotient(high * (255.0f - pixel.saturation) + 127.0f, 255.0f);
  // A sextant whose bit is set in highs takes high, in lows low, else middle: no branches, so that
  // loops vectorize.
  const int bit = as_index(sextant);
  auto by_sextant = [&](int highs, int lows) {
    const float value = highs >> bit & 1 ? high : middle;
    return lows >> bit & 1 ? low : value;
  };
  return {by_sextant(0b1100001, 0b0001100), by_sextant(0b0000110, 0b0110000),
          by_sextant(0b0011000, 0b1000011)};
}

// Turns the hue by 0..255 steps of 1/255, through 8-bit HSV.
AMDIM_HD Rgb turn_hue(Rgb pixel, float steps) {
  Hsv turned = rgb_to_hsv(pixel);
  const float hue = turned.hue + steps;
  turned.hue = hue >= 256.0f ? hue - 256.0f : hue;
  return hsv_to_rgb(turned);
}

}  // namespace amdim
