// Scratch memory of some rows of one view, split by the sizes of its crop.
#pragma once

#include <cstdint>

#include "bicubic.h"
#include "view.h"

namespace amdim {

// A slab is LANES source rows, resized side by side; on a CPU they fill a vector register.
template <int LANES>
struct alignas(LANES) Lanes {
  uint8_t level[LANES];
};

constexpr int kMaxStagedSlabs = 4;

// All members point into one buffer. ring_slabs is 0 if the buffer is too small.
template <int LANES>
struct Scratch {
  Taps* row_taps;           // [rows]
  Taps* column_taps;        // [size]
  int32_t* row_weights;     // [rows, row_limit]
  int32_t* column_weights;  // [size, column_limit]
  long long* partials;      // [threads]
  Lanes<LANES>* staged;     // [staged_slabs, 3, crop width], source rows, transposed
  Lanes<LANES>* lines;      // [ring_slabs * LANES, 3, pitch], resized rows; slab g in slot g % ring
  int row_limit, column_limit;
  int pitch;  // Lanes per line of one channel
  int staged_slabs, ring_slabs;
};

AMDIM_HD int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The most slabs of lines that one output row needs.
AMDIM_HD int least_slabs(int taps, int lanes) { return (taps + lanes - 2) / lanes + 1; }

// Splits ``bytes`` of memory, aligned to 16, for ``rows`` output rows; the layout depends on its
// arguments only.
template <int LANES>
AMDIM_HD Scratch<LANES> split_scratch(char* memory, int64_t bytes, const View& view, int size,
                                      int rows, int threads) {
  Scratch<LANES> scratch;
  int64_t used = 0;
  auto take = [&](int64_t length) {
    char* start = memory + used;
    used += rounded_up(length, 16);
    return start;
  };
  const int64_t places = size, lines = rows;
  scratch.row_limit = tap_limit(view.height, view.resized_height);
  scratch.column_limit = tap_limit(view.width, view.resized_width);
  scratch.pitch = (size + LANES - 1) / LANES;
  scratch.row_taps = reinterpret_cast<Taps*>(take(lines * sizeof(Taps)));
  scratch.column_taps = reinterpret_cast<Taps*>(take(places * sizeof(Taps)));
  scratch.row_weights =
      reinterpret_cast<int32_t*>(take(lines * scratch.row_limit * sizeof(int32_t)));
  scratch.column_weights =
      reinterpret_cast<int32_t*>(take(places * scratch.column_limit * sizeof(int32_t)));
  scratch.partials = reinterpret_cast<long long*>(take(threads * sizeof(long long)));

  const int64_t staged_bytes = 3LL * view.width * LANES;
  const int64_t line_bytes = 3LL * scratch.pitch * LANES * LANES;
  const int slabs = (view.height + LANES - 1) / LANES;
  const int least = smaller(least_slabs(scratch.row_limit, LANES), slabs);
  const int64_t spare = bytes - used - 2 * 16 - least * line_bytes - staged_bytes;
  if (spare < 0) {
    scratch.staged_slabs = scratch.ring_slabs = 0;
    return scratch;
  }
  const int64_t more_staged = spare / staged_bytes;
  scratch.staged_slabs =
      1 + static_cast<int>(more_staged < kMaxStagedSlabs - 1 ? more_staged : kMaxStagedSlabs - 1);
  const int64_t more_lines = (spare - (scratch.staged_slabs - 1) * staged_bytes) / line_bytes;
  scratch.ring_slabs =
      more_lines < slabs - least ? least + static_cast<int>(more_lines) : slabs;
  scratch.staged = reinterpret_cast<Lanes<LANES>*>(take(scratch.staged_slabs * staged_bytes));
  scratch.lines = reinterpret_cast<Lanes<LANES>*>(take(scratch.ring_slabs * line_bytes));
  return scratch;
}

// Enough bytes for ``rows`` output rows of every view of images up to height x width, ``strip`` at a
// time. resized_height, resized_width: the smallest size that a whole image is resized to.
template <int LANES>
AMDIM_HD int64_t scratch_bytes(int height, int width, int resized_height, int resized_width,
                               int size, int rows, int threads, int strip) {
  const int64_t places = size;
  const int row_limit = tap_limit(height, resized_height);
  const int column_limit = tap_limit(width, resized_width);
  const int64_t pitch = (size + LANES - 1) / LANES;
  const int64_t sources = row_limit + static_cast<int64_t>(strip - 1) * height / resized_height + 1;
  const int64_t slabs = (sources + LANES - 2) / LANES + 1;
  return (rows + places) * static_cast<int64_t>(sizeof(Taps)) +
         (static_cast<int64_t>(rows) * row_limit + places * column_limit) *
             static_cast<int64_t>(sizeof(int32_t)) +
         threads * static_cast<int64_t>(sizeof(long long)) + 3LL * width * LANES +
         slabs * 3 * pitch * LANES * LANES + 8 * 16;
}

}  // namespace amdim
