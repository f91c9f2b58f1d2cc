// Crop and resize of some rows of one view: horizontal pass, rounding to uint8, vertical pass, as in
// Pillow < 13.
#pragma once

#include "color.h"
#include "stage.h"

namespace amdim {

// Output rows begin .. end - 1.
struct Rows {
  int begin, end;

  AMDIM_HD int count() const { return end - begin; }
};

// One sum of weighted levels for each channel and lane, rounded and clamped at the end.
template <int LANES>
struct Sums {
  int sum[3][LANES];

  AMDIM_HD Sums() {
    for (int channel = 0; channel < 3; ++channel) {
      AMDIM_LANE_LOOP
      for (int lane = 0; lane < LANES; ++lane) sum[channel][lane] = 1 << (kWeightBits - 1);
    }
  }

  // levels: one channel after the other, ``step`` apart.
  AMDIM_HD void add(const Lanes<LANES>* levels, int step, int weight) {
    for (int channel = 0; channel < 3; ++channel) {
      const Lanes<LANES> term = levels[channel * step];
      AMDIM_LANE_LOOP
      for (int lane = 0; lane < LANES; ++lane) sum[channel][lane] += weight * term.level[lane];
    }
  }
};

// Resizes the staged slabs along rows, into their slots of the ring.
template <int LANES, class Team>
AMDIM_HD void resize_rows(const Team& team, const View& view, int size, int begin, int end,
                          const Scratch<LANES>& scratch) {
  const int width = scratch.pitch * LANES, line = 3 * width;
  const Share share = share_of(team, size);
  for (int place = share.column; place < size; place += share.columns) {
    const Taps taps = scratch.column_taps[place];
    const int32_t* weights = scratch.column_weights + place * scratch.column_limit;
    for (int slab = begin + share.row; slab < end; slab += share.rows) {
      const Lanes<LANES>* staged = scratch.staged + (slab - begin) * 3 * view.width + taps.first;
      Sums<LANES> sums;
      AMDIM_SHORT_LOOP
      for (int tap = 0; tap < taps.count; ++tap) sums.add(staged + tap, view.width, weights[tap]);
      const int64_t slot = slab % scratch.ring_slabs * LANES;
      uint8_t* out = reinterpret_cast<uint8_t*>(scratch.lines) + slot * line + place;
      for (int channel = 0; channel < 3; ++channel) {
        AMDIM_LANE_LOOP
        for (int lane = 0; lane < LANES; ++lane) {
          out[lane * line + channel * width] =
              static_cast<uint8_t>(clamp_level(sums.sum[channel][lane]));
        }
      }
    }
  }
}

// Resizes along columns: output rows begin .. end - 1 from the lines in the ring, each group of LANES
// pixels handed to use(row, group, pixels).
template <int LANES, class Team, class Use>
AMDIM_HD void resize_columns(const Team& team, const Rows& rows, int begin, int end,
                             const Scratch<LANES>& scratch, Use use) {
  const int pitch = scratch.pitch, ring_rows = scratch.ring_slabs * LANES;
  const Share share = share_of(team, pitch);
  for (int row = begin + share.row; row < end; row += share.rows) {
    const Taps taps = scratch.row_taps[row - rows.begin];
    const int32_t* weights = scratch.row_weights + (row - rows.begin) * scratch.row_limit;
    const int first_slot = taps.first % ring_rows;
    for (int group = share.column; group < pitch; group += share.columns) {
      Sums<LANES> sums;
      int slot = first_slot;
      AMDIM_SHORT_LOOP
      for (int tap = 0; tap < taps.count; ++tap) {
        sums.add(scratch.lines + slot * 3 * pitch + group, pitch,
                 weights[tap]);
        slot = slot + 1 == ring_rows ? 0 : slot + 1;
      }
      Pixels<LANES> pixels;
      AMDIM_LANE_LOOP
      for (int lane = 0; lane < LANES; ++lane) {
        pixels.red[lane] = as_level(clamp_level(sums.sum[0][lane]));
        pixels.green[lane] = as_level(clamp_level(sums.sum[1][lane]));
        pixels.blue[lane] = as_level(clamp_level(sums.sum[2][lane]));
      }
      use(row, group, pixels);
    }
  }
}

// Makes the pixels of ``rows``. Lines are made once, in a ring that holds what a strip of rows needs.
template <int LANES, class Team, class Use>
AMDIM_HD void resample(const Team& team, const Image& image, const View& view, int size,
                       const Rows& rows, const Scratch<LANES>& scratch, Use use) {
  for (int place = team.index; place < rows.count() + size; place += team.count) {
    if (place < rows.count()) {
      scratch.row_taps[place] =
          bicubic_taps(view.window_top + rows.begin + place, view.height, view.resized_height,
                       scratch.row_weights + place * scratch.row_limit);
    } else {
      const int column = place - rows.count();
      scratch.column_taps[column] =
          bicubic_taps(view.window_left + column, view.width, view.resized_width,
                       scratch.column_weights + column * scratch.column_limit);
    }
  }
  team.sync(kWeightsReady);

  int made = 0;  // slabs of lines so far
  for (int row = rows.begin; row < rows.end;) {
    const int first_slab = scratch.row_taps[row - rows.begin].first / LANES;
    int strip_end = row, needed = 0;
    while (strip_end < rows.end) {
      const Taps taps = scratch.row_taps[strip_end - rows.begin];
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
    resize_columns<LANES>(team, rows, row, strip_end, scratch, use);
    row = strip_end;
  }
}

}  // namespace amdim
