// The pixel functions of csrc/shared over NumPy arrays; see tests/csrc/build.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "shared/bicubic.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;

// Applies change to each triple of uint8 [..., 3].
template <class Change>
Bytes map_triples(const Bytes& triples, Change change) {
  if (triples.ndim() < 1 || triples.shape(triples.ndim() - 1) != 3) {
    throw py::value_error("pixels must be uint8 [..., 3]");
  }
  Bytes result(py::array::ShapeContainer(triples.shape(), triples.shape() + triples.ndim()));
  const uint8_t* in = triples.data();
  uint8_t* out = result.mutable_data();
  for (py::ssize_t i = 0; i < triples.size(); i += 3) change(in + i, out + i);
  return result;
}

amdim::Rgb rgb_of(const uint8_t* in) {
  return {amdim::as_level(in[0]), amdim::as_level(in[1]), amdim::as_level(in[2])};
}

void store(amdim::Rgb rgb, uint8_t* out) {
  out[0] = static_cast<uint8_t>(amdim::as_index(rgb.red));
  out[1] = static_cast<uint8_t>(amdim::as_index(rgb.green));
  out[2] = static_cast<uint8_t>(amdim::as_index(rgb.blue));
}

Bytes rgb_to_hsv(const Bytes& pixels) {
  return map_triples(pixels, [](const uint8_t* in, uint8_t* out) {
    const amdim::Hsv hsv = amdim::rgb_to_hsv(rgb_of(in));
    store({hsv.hue, hsv.saturation, hsv.value}, out);
  });
}

Bytes hsv_to_rgb(const Bytes& pixels) {
  return map_triples(pixels, [](const uint8_t* in, uint8_t* out) {
    const amdim::Rgb levels = rgb_of(in);
    store(amdim::hsv_to_rgb({levels.red, levels.green, levels.blue}), out);
  });
}

Bytes turn_hue(const Bytes& pixels, int steps) {
  return map_triples(pixels, [steps](const uint8_t* in, uint8_t* out) {
    store(amdim::turn_hue(rgb_of(in), amdim::as_level(steps & 0xFF)), out);
  });
}

uint8_t luma(uint8_t red, uint8_t green, uint8_t blue) {
  const uint8_t pixel[3] = {red, green, blue};
  return static_cast<uint8_t>(amdim::as_index(amdim::luma(rgb_of(pixel))));
}

uint8_t blend(uint8_t degenerate, uint8_t level, float factor) {
  return static_cast<uint8_t>(amdim::as_index(
      amdim::blend(amdim::as_level(degenerate), amdim::as_level(level), factor)));
}

// First tap and weights of one output place.
py::tuple bicubic_taps(int place, int length, int output) {
  if (length < 1 || output < 1 || place < 0 || place >= output) {
    throw py::value_error("bicubic_taps needs length >= 1 and 0 <= place < output");
  }
  py::array_t<int32_t> weights(amdim::tap_limit(length, output));
  const amdim::Taps taps = amdim::bicubic_taps(place, length, output, weights.mutable_data());
  return py::make_tuple(taps.first, weights[py::slice(0, taps.count, 1)]);
}

}  // namespace

PYBIND11_MODULE(pixel, module) {
  module.doc() = "Pixel functions of the compiled augmentation, vectorized over NumPy arrays.";
  module.def("luma", py::vectorize(luma), "Luma of uint8 red, green, blue.");
  module.def("blend", py::vectorize(blend), "Blend of uint8 degenerate and level by a factor.");
  module.def("rgb_to_hsv", &rgb_to_hsv, "uint8 [..., 3] to uint8 [..., 3].");
  module.def("hsv_to_rgb", &hsv_to_rgb, "uint8 [..., 3] to uint8 [..., 3].");
  module.def("turn_hue", &turn_hue, "uint8 [..., 3] and steps of 1/255 turn to uint8 [..., 3].");
  module.def("hue_steps", py::vectorize(amdim::hue_steps), "Whole steps of 1/255 turn in a float32 number of turns.");
  module.def("corrected_quotient", py::vectorize(amdim::corrected_quotient),
             "floor(a / b) from an estimate at most 1 from it, float32.");
  module.def("bicubic_taps", &bicubic_taps, "First tap and int32 weights of an output place.");
}
