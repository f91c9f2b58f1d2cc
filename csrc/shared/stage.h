// Source rows of one crop into scratch memory, LANES rows side by side.
#pragma once

#include "scratch.h"
#include "team.h"

namespace amdim {

// Where the rows of one slab start; rows below the crop repeat its last one.
template <int LANES>
struct SlabRows {
  const uint8_t* row[LANES];

  AMDIM_HD SlabRows(const Image& image, const View& view, int slab) {
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) {
      row[lane] = source_row(image, view, smaller(slab * LANES + lane, view.height - 1));
    }
  }
};

// Stages columns begin, begin + step, ... before end of one slab, one channel after the other.
template <int LANES>
AMDIM_HD void stage_columns(const Image& image, const View& view, const SlabRows<LANES>& rows,
                            int begin, int end, int step, Lanes<LANES>* staged) {
  for (int column = begin; column < end; column += step) {
    const int64_t offset = source_column(image, view, column);
    for (int channel = 0; channel < 3; ++channel) {
      Lanes<LANES> levels;
      AMDIM_LANE_LOOP
      for (int lane = 0; lane < LANES; ++lane) {
        levels.level[lane] = rows.row[lane][offset + channel * image.channel_stride];
      }
      staged[channel * view.width + column] = levels;
    }
  }
}

AMDIM_HD uint32_t load_word(const uint8_t* aligned) {
#if AMDIM_CUDA_CODE
  return *reinterpret_cast<const uint32_t*>(aligned);
#else
  uint32_t word;
  __builtin_memcpy(&word, aligned, sizeof word);
  return word;
#endif
}

// Four pixels of packed RGB from any address, by aligned loads; none leaves begin .. end - 1.
struct Quad {
  uint32_t word[3];

  AMDIM_HD Quad(const uint8_t* bytes, const uint8_t* begin, const uint8_t* end) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(bytes);
    const int shift = static_cast<int>(address & 3);
    const uint8_t* aligned = bytes - shift;
    if (aligned >= begin && aligned + 16 <= end) {
      uint32_t loaded[4];
      for (int i = 0; i < 4; ++i) loaded[i] = load_word(aligned + 4 * i);
      for (int i = 0; i < 3; ++i) {
        const uint64_t both = static_cast<uint64_t>(loaded[i + 1]) << 32 | loaded[i];
        word[i] = static_cast<uint32_t>(both >> 8 * shift);
      }
    } else {
      for (int i = 0; i < 3; ++i) {
        word[i] = bytes[4 * i] | bytes[4 * i + 1] << 8 | bytes[4 * i + 2] << 16 |
                  static_cast<uint32_t>(bytes[4 * i + 3]) << 24;
      }
    }
  }

  AMDIM_HD uint8_t at(int byte) const {
    return static_cast<uint8_t>(word[byte / 4] >> 8 * (byte % 4));
  }
};

AMDIM_HD bool is_packed(const Image& image, const View& view) {
  return image.column_stride == 3 && image.channel_stride == 1 && view.dx == 0;
}

// The same for packed RGB without a sideways translation, four columns at a time.
template <class Team>
AMDIM_HD void stage_packed(const Team& team, const Image& image, const View& view, int begin,
                           int end, const Scratch<4>& scratch) {
  const bool flipped = view.flags & kFlip;
  const int quads = view.width / 4;
  const int64_t first = 3 * (flipped ? image.width - view.left - view.width : view.left);
  const uint8_t* last = image.data + (image.height - 1) * image.row_stride + 3LL * image.width;
  const Share share = share_of(team, larger(quads, 1));
  for (int slab = begin + share.row; slab < end; slab += share.rows) {
    const SlabRows<4> rows(image, view, slab);
    Lanes<4>* staged = scratch.staged + (slab - begin) * 3 * view.width;
    for (int quad = share.column; quad < quads; quad += share.columns) {
      const int64_t offset = first + 12LL * quad;
      const Quad pixels[4] = {{rows.row[0] + offset, image.data, last},
                              {rows.row[1] + offset, image.data, last},
                              {rows.row[2] + offset, image.data, last},
                              {rows.row[3] + offset, image.data, last}};
      for (int i = 0; i < 4; ++i) {
        const int column = flipped ? view.width - 1 - (4 * quad + i) : 4 * quad + i;
        for (int channel = 0; channel < 3; ++channel) {
          Lanes<4> levels;
          for (int lane = 0; lane < 4; ++lane) levels.level[lane] = pixels[lane].at(3 * i + channel);
          staged[channel * view.width + column] = levels;
        }
      }
    }
    // The columns beyond whole quads are the last of a row, or the first of a flipped one.
    const int rest = flipped ? 0 : 4 * quads;
    stage_columns<4>(image, view, rows, rest + share.column, rest + view.width - 4 * quads,
                     share.columns, staged);
  }
}

// Stages slabs begin .. end - 1.
template <int LANES, class Team>
AMDIM_HD void stage_rows(const Team& team, const Image& image, const View& view, int begin, int end,
                         const Scratch<LANES>& scratch) {
  if constexpr (LANES == 4) {
    if (is_packed(image, view)) {
      stage_packed(team, image, view, begin, end, scratch);
      return;
    }
  }
  const Share share = share_of(team, view.width);
  for (int slab = begin + share.row; slab < end; slab += share.rows) {
    const SlabRows<LANES> rows(image, view, slab);
    stage_columns<LANES>(image, view, rows, share.column, view.width, share.columns,
                         scratch.staged + (slab - begin) * 3 * view.width);
  }
}

}  // namespace amdim
