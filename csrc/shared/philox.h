// Philox-4x32-10, Salmon et al. 2011: four random words of a counter and a key.
#pragma once

#include <cstdint>

#include "macros.h"

namespace amdim {

struct Words {
  uint32_t word[4];
  // In [0, 1), a multiple of 2^-32.
  AMDIM_HD double unit(int i) const { return word[i] * (1.0 / 4294967296.0); }
  // Uniform in 0 .. count - 1.
  AMDIM_HD int64_t below(int i, int64_t count) const {
    return static_cast<int64_t>(static_cast<uint64_t>(word[i]) * static_cast<uint64_t>(count) >> 32);
  }
};

AMDIM_HD Words philox(Words counter, uint64_t key) {
  uint32_t low_key = static_cast<uint32_t>(key), high_key = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = 0xD2511F53ull * counter.word[0];
    const uint64_t second = 0xCD9E8D57ull * counter.word[2];
    counter = {{static_cast<uint32_t>(second >> 32) ^ counter.word[1] ^ low_key,
                static_cast<uint32_t>(second),
                static_cast<uint32_t>(first >> 32) ^ counter.word[3] ^ high_key,
                static_cast<uint32_t>(first)}};
    low_key += 0x9E3779B9u;
    high_key += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace amdim
