// Levels 0..255 as floats that hold whole numbers, and the few roundings that the views are made of.
//
// On CUDA no function here converts between integers and floats by a conversion instruction: those run
// at an eighth of the rate of a sum. The float 2^23 + n has n in its lowest bits.
#pragma once

#include <cstdint>

#include "macros.h"

namespace amdim {

#if defined(__CUDA_ARCH__)
#define AMDIM_CUDA_CODE 1
#else
#define AMDIM_CUDA_CODE 0
#endif

constexpr float kFirstWhole = 8388608.0f;  // 2^23: floats from here on are whole numbers

// A whole number 0 <= n < 2^22 as a float.
AMDIM_HD float as_level(int n) {
#if AMDIM_CUDA_CODE
  return __int_as_float(0x4B000000 | n) - kFirstWhole;
#else
  return static_cast<float>(n);
#endif
}

// The integer of a float that holds a whole number 0 <= n < 2^22.
AMDIM_HD int as_index(float level) {
#if AMDIM_CUDA_CODE
  return __float_as_int(level + kFirstWhole) & 0x3FFFFF;
#else
  return static_cast<int>(level);
#endif
}

// Whole part of 0 <= value < 2^22.
AMDIM_HD float whole(float value) {
#if AMDIM_CUDA_CODE
  return __fadd_rz(value, kFirstWhole) - kFirstWhole;
#else
  return static_cast<float>(static_cast<int>(value));
#endif
}

// floor(a / b) of whole numbers, if estimate is a whole number at most 1 from it.
AMDIM_HD float corrected_quotient(float a, float b, float estimate) {
  const float rest = a - estimate * b;
  const float raised = rest >= b ? estimate + 1.0f : estimate;
  return rest < 0.0f ? estimate - 1.0f : raised;
}

// floor(a / b) of whole numbers 0 <= a < 2^24 and 0 < b with a quotient up to 2^16.
AMDIM_HD float quotient(float a, float b) {
#if AMDIM_CUDA_CODE
  return corrected_quotient(a, b, whole(a * __fdividef(1.0f, b)));
#else
  return whole(a / b);  // no float quotient below an integer rounds up to it
#endif
}

}  // namespace amdim
