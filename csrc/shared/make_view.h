// The block function: one view of one image, by one team, in its scratch memory.
#pragma once

#include "color.h"
#include "resample.h"

namespace amdim {

// Returns false and writes nothing if ``bytes`` are too few for the scratch memory.
template <int LANES, class T, class Team>
AMDIM_HD bool make_view(const Team& team, const Image& image, const View& requested, int size,
                        const T* table, bool channels_last, char* memory, int64_t bytes, T* out) {
  const View view = clamped(requested, image.height, image.width, size);
  const Scratch<LANES> scratch = split_scratch<LANES>(memory, bytes, view, size, team.count);
  if (scratch.ring_slabs == 0) return false;
  resample<LANES>(team, image, view, size, scratch);
  jitter(team, view, size, scratch.pixels, scratch.partials);
  write_view(team, scratch.pixels, size, table, channels_last, out);
  return true;
}

}  // namespace amdim
