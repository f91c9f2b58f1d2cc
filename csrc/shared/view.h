// One view of one image: what to do, clamped so that no memory access can leave its image.
#pragma once

#include <cstdint>

#include "pixel.h"

namespace amdim {

// Where the bytes of an image are; strides in bytes.
struct Image {
  const uint8_t* data;
  int height, width;
  int64_t row_stride, column_stride, channel_stride;
};

enum Operation { kBrightness, kContrast, kSaturation, kHue, kOperations };

// A record of the op's ``params``: int32, floats by their bits.
struct View {
  int32_t top, left, height, width;        // crop, source pixels, after flip and translation
  int32_t resized_height, resized_width;   // what the crop is resized to
  int32_t window_top, window_left;         // first pixel of the output in the resized crop
  int32_t dy, dx;                          // reflected translation
  int32_t order[kOperations];              // permutation of Operation
  float factor[kOperations];               // hue: turns
  int32_t flags;                           // kFlip, kJitter, kGray
};
constexpr int kViewWords = 19;
static_assert(sizeof(View) == kViewWords * sizeof(int32_t), "a record has no padding");

enum Flag { kFlip = 1, kJitter = 2, kGray = 4 };

AMDIM_HD int between(int value, int low, int high) { return smaller(larger(value, low), high); }

// The view itself if it is possible for the image and the output size, else the nearest possible.
AMDIM_HD View clamped(View view, int height, int width, int size) {
  view.top = between(view.top, 0, height - 1);
  view.left = between(view.left, 0, width - 1);
  view.height = between(view.height, 1, height - view.top);
  view.width = between(view.width, 1, width - view.left);
  view.resized_height = larger(view.resized_height, size);
  view.resized_width = larger(view.resized_width, size);
  view.window_top = between(view.window_top, 0, view.resized_height - size);
  view.window_left = between(view.window_left, 0, view.resized_width - size);
  view.dy = between(view.dy, 1 - height, height - 1);
  view.dx = between(view.dx, 1 - width, width - 1);
  // A second contrast would write the partial sums of the first while others read them.
  int seen = 0;
  for (int i = 0; i < kOperations; ++i) {
    view.order[i] = between(view.order[i], 0, kOperations - 1);
    seen |= 1 << view.order[i];
  }
  for (int i = 0; i < kOperations; ++i) {
    if (seen != 0b1111) view.order[i] = i;
    const float low = i == kHue ? -0.5f : 0.0f;
    const float high = i == kHue ? 0.5f : 1e30f;
    const float factor = view.factor[i] > low ? view.factor[i] : low;  // NaN too
    view.factor[i] = factor < high ? factor : high;
  }
  return view;
}

// Index of a pixel after moving the content by shift, borders reflected without the edge (101).
AMDIM_HD int reflected(int index, int shift, int length) {
  const int moved = index < shift ? shift - index : index - shift;
  return smaller(moved, 2 * (length - 1) - moved);
}

AMDIM_HD const uint8_t* source_row(const Image& image, const View& view, int row) {
  return image.data + reflected(view.top + row, view.dy, image.height) * image.row_stride;
}

AMDIM_HD int64_t source_column(const Image& image, const View& view, int column) {
  const int moved = reflected(view.left + column, view.dx, image.width);
  return (view.flags & kFlip ? image.width - 1 - moved : moved) * image.column_stride;
}

}  // namespace amdim
