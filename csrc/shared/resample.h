// Crop and resize of one view: horizontal pass, rounding to uint8, vertical pass, as in Pillow < 13.
#pragma once

#include "scratch.h"
#include "team.h"

namespace amdim {

// Stages slabs begin .. end - 1 of LANES source rows each, one channel after the other; rows below
// the crop repeat its last one.
template <int LANES, class Team>
AMDIM_HD void stage_rows(const Team& team, const Image& image, const View& view, int begin, int end,
                         const Scratch<LANES>& scratch) {
  for (int row = begin * LANES; row < end * LANES; ++row) {
    const uint8_t* source = source_row(image, view, smaller(row, view.height - 1));
    Lanes<LANES>* staged = scratch.staged + (row / LANES - begin) * 3 * view.width;
    const int lane = row % LANES;
    auto stage = [&](int column, const uint8_t* pixel) {
      staged[column].level[lane] = pixel[0];
      staged[view.width + column].level[lane] = pixel[image.channel_stride];
      staged[2 * view.width + column].level[lane] = pixel[2 * image.channel_stride];
    };
    if (view.dx == 0) {
      const int64_t step = view.flags & kFlip ? -image.column_stride : image.column_stride;
      const uint8_t* first = source + source_column(image, view, 0);
      for (int column = team.index; column < view.width; column += team.count) {
        stage(column, first + column * step);
      }
    } else {
      for (int column = team.index; column < view.width; column += team.count) {
        stage(column, source + source_column(image, view, column));
      }
    }
  }
}

template <int LANES>
AMDIM_HD Lanes<LANES> weighted_sum(const Lanes<LANES>* first, int step, const int32_t* weights,
                                   int count) {
  int sum[LANES];
  AMDIM_LANE_LOOP
  for (int lane = 0; lane < LANES; ++lane) sum[lane] = 1 << (kWeightBits - 1);
  for (int tap = 0; tap < count; ++tap) {
    const Lanes<LANES> levels = first[static_cast<int64_t>(tap) * step];
    const int32_t weight = weights[tap];
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) sum[lane] += weight * levels.level[lane];
  }
  Lanes<LANES> result;
  AMDIM_LANE_LOOP
  for (int lane = 0; lane < LANES; ++lane) {
    result.level[lane] = static_cast<uint8_t>(clamp_level(sum[lane]));
  }
  return result;
}

// Resizes the staged slabs along rows, into their slots of the ring.
template <int LANES, class Team>
AMDIM_HD void resize_rows(const Team& team, const View& view, int size, int begin, int end,
                          const Scratch<LANES>& scratch) {
  const int line = 3 * scratch.pitch * LANES;
  for (int item = team.index; item < (end - begin) * 3 * size; item += team.count) {
    const int place = item % size, channel = item / size % 3, slab = item / size / 3;
    const Taps taps = scratch.column_taps[place];
    const Lanes<LANES>* staged = scratch.staged + (slab * 3 + channel) * view.width + taps.first;
    const Lanes<LANES> levels = weighted_sum<LANES>(
        staged, 1, scratch.column_weights + place * scratch.column_limit, taps.count);
    const int64_t slot = (begin + slab) % scratch.ring_slabs * LANES;
    uint8_t* out = reinterpret_cast<uint8_t*>(scratch.lines) + slot * line +
                   channel * scratch.pitch * LANES + place;
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) out[lane * line] = levels.level[lane];
  }
}

// Resizes along columns: output rows begin .. end - 1 from the lines in the ring.
template <int LANES, class Team>
AMDIM_HD void resize_columns(const Team& team, int size, int begin, int end,
                             const Scratch<LANES>& scratch) {
  const int pitch = scratch.pitch, ring_rows = scratch.ring_slabs * LANES;
  for (int item = team.index; item < (end - begin) * 3 * pitch; item += team.count) {
    const int chunk = item % pitch, channel = item / pitch % 3, row = begin + item / pitch / 3;
    const Taps taps = scratch.row_taps[row];
    const int32_t* weights = scratch.row_weights + row * scratch.row_limit;
    const Lanes<LANES>* column = scratch.lines + channel * pitch + chunk;
    int sum[LANES];
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) sum[lane] = 1 << (kWeightBits - 1);
    int slot = taps.first % ring_rows;
    for (int tap = 0; tap < taps.count; ++tap) {
      const Lanes<LANES> levels = column[static_cast<int64_t>(slot) * 3 * pitch];
      AMDIM_LANE_LOOP
      for (int lane = 0; lane < LANES; ++lane) sum[lane] += weights[tap] * levels.level[lane];
      slot = slot + 1 == ring_rows ? 0 : slot + 1;
    }
    const int first = chunk * LANES;
    uint8_t* out = scratch.pixels + (static_cast<int64_t>(channel) * size + row) * size + first;
    const int wanted = smaller(LANES, size - first);
    for (int lane = 0; lane < wanted; ++lane) {
      out[lane] = static_cast<uint8_t>(clamp_level(sum[lane]));
    }
  }
}

// Fills scratch.pixels. Lines are made once, in a ring that holds what a strip of rows needs.
template <int LANES, class Team>
AMDIM_HD void resample(const Team& team, const Image& image, const View& view, int size,
                       const Scratch<LANES>& scratch) {
  for (int place = team.index; place < 2 * size; place += team.count) {
    if (place < size) {
      scratch.row_taps[place] =
          bicubic_taps(view.window_top + place, view.height, view.resized_height,
                       scratch.row_weights + place * scratch.row_limit);
    } else {
      const int column = place - size;
      scratch.column_taps[column] =
          bicubic_taps(view.window_left + column, view.width, view.resized_width,
                       scratch.column_weights + column * scratch.column_limit);
    }
  }
  team.sync(kWeightsReady);

  int made = 0;  // slabs of lines so far
  for (int row = 0; row < size;) {
    const int first_slab = scratch.row_taps[row].first / LANES;
    int strip_end = row, needed = 0;
    while (strip_end < size) {
      const Taps taps = scratch.row_taps[strip_end];
      const int slabs = (taps.first + taps.count - 1) / LANES + 1;
      if (strip_end > row && slabs - first_slab > scratch.ring_slabs) break;
      needed = slabs;
      ++strip_end;
    }
    for (int slab = larger(made, first_slab); slab < needed;) {
      const int slab_end = smaller(slab + scratch.staged_slabs, needed);
      stage_rows<LANES>(team, image, view, slab, slab_end, scratch);
      team.sync(kRowsStaged);
      resize_rows<LANES>(team, view, size, slab, slab_end, scratch);
      team.sync(kLinesReady);
      slab = slab_end;
    }
    made = larger(made, needed);
    resize_columns<LANES>(team, size, row, strip_end, scratch);
    row = strip_end;
  }
  team.sync(kPixelsReady);
}

}  // namespace amdim
