// Schemas of the compiled ops; their implementations are in cpu/ and, in a library apart, cuda/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(amdim_fast, m) {
  m.def(
      "augment(Tensor images, Tensor? layout, Tensor params, Tensor table, int size, int height, "
      "int width, bool channels_last) -> Tensor");
}
