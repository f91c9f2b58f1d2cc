// A group of pixels on its way out: bytes between the two phases, or what the table makes of them.
#pragma once

#include "color.h"
#include "scratch.h"

namespace amdim {

// COUNT values that one instruction stores.
template <int COUNT, class T>
struct alignas(COUNT * sizeof(T)) Pack {
  T value[COUNT];
};

// Bytes [3, size, pitch] in LANES of one view: its pixels while they wait for the mean.
template <int LANES>
struct Waiting {
  Lanes<LANES>* bytes;
  int size, pitch;

  AMDIM_HD Lanes<LANES>& at(int channel, int row, int chunk) const {
    return bytes[(static_cast<int64_t>(channel) * size + row) * pitch + chunk];
  }
};

template <int LANES>
AMDIM_HD void put_aside(const Pixels<LANES>& pixels, const Waiting<LANES>& waiting, int row,
                        int chunk) {
  const float* channels[3] = {pixels.red, pixels.green, pixels.blue};
  for (int channel = 0; channel < 3; ++channel) {
    Lanes<LANES> levels;
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) {
      levels.level[lane] = static_cast<uint8_t>(as_index(channels[channel][lane]));
    }
    waiting.at(channel, row, chunk) = levels;
  }
}

template <int LANES>
AMDIM_HD Pixels<LANES> take_back(const Waiting<LANES>& waiting, int row, int chunk) {
  Pixels<LANES> pixels;
  float* channels[3] = {pixels.red, pixels.green, pixels.blue};
  for (int channel = 0; channel < 3; ++channel) {
    const Lanes<LANES> levels = waiting.at(channel, row, chunk);
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) channels[channel][lane] = as_level(levels.level[lane]);
  }
  return pixels;
}

// One view of the output: [3, size, size], or [size, size, 3].
template <class T>
struct Canvas {
  T* out;
  const T* table;  // [3, 256]
  int size;
  bool channels_last;
};

// Looks pixels first .. first + LANES - 1 of a row up in the table and stores those inside the row.
template <int LANES, class T>
AMDIM_HD void paint(const Pixels<LANES>& pixels, const Canvas<T>& canvas, int row, int first) {
  const float* channels[3] = {pixels.red, pixels.green, pixels.blue};
  const int size = canvas.size, wanted = smaller(LANES, size - first);
  const int64_t place = static_cast<int64_t>(row) * size + first;
  const int64_t area = static_cast<int64_t>(size) * size;
  T values[3][LANES];
  for (int channel = 0; channel < 3; ++channel) {
    const T* levels = canvas.table + 256 * channel;
    AMDIM_LANE_LOOP
    for (int lane = 0; lane < LANES; ++lane) {
      values[channel][lane] = levels[as_index(channels[channel][lane])];
    }
  }
  // Whole packs are aligned: size is a multiple of LANES, and torch aligns what it allocates.
  if (LANES == 4 && size % LANES == 0) {
    using Group = Pack<LANES, T>;
    if (canvas.channels_last) {
      Group* out = reinterpret_cast<Group*>(canvas.out + 3 * place);
      for (int part = 0; part < 3; ++part) {
        Group group;
        for (int i = 0; i < LANES; ++i) {
          const int flat = part * LANES + i;
          group.value[i] = values[flat % 3][flat / 3];
        }
        out[part] = group;
      }
    } else {
      for (int channel = 0; channel < 3; ++channel) {
        Group group;
        for (int lane = 0; lane < LANES; ++lane) group.value[lane] = values[channel][lane];
        *reinterpret_cast<Group*>(canvas.out + channel * area + place) = group;
      }
    }
    return;
  }
  const int64_t pixel_step = canvas.channels_last ? 3 : 1;
  for (int channel = 0; channel < 3; ++channel) {
    T* out = canvas.out + (canvas.channels_last ? 3 * place + channel : channel * area + place);
    for (int lane = 0; lane < wanted; ++lane) out[lane * pixel_step] = values[channel][lane];
  }
}

}  // namespace amdim
