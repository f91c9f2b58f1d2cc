// Schemas of the compiled ops. They are implemented in cpu/ and, in a separate library, in cuda/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(amdim_fast, m) {
  m.def(
      "augment(Tensor images, Tensor? layout, Tensor params, Tensor table, int size, int height, "
      "int width, bool channels_last) -> Tensor");
  m.def(
      "view_records(Tensor crop, Tensor translate, Tensor flip, Tensor jitter, Tensor order, "
      "Tensor brightness, Tensor contrast, Tensor saturation, Tensor hue, Tensor gray, "
      "Tensor sizes, Tensor windows) -> (Tensor records, Tensor impossible)");
  m.def(
      "sample_views(Tensor sizes, Tensor sample_index, Tensor policy, int seed, int views) -> "
      "(Tensor crop, Tensor translate, Tensor flip, Tensor jitter, Tensor order, Tensor brightness, "
      "Tensor contrast, Tensor saturation, Tensor hue, Tensor gray)");
  m.def(
      "draw_records(Tensor images, Tensor sizes, Tensor sample_index, Tensor policy, int seed, "
      "int views, int size) -> (Tensor records, Tensor layout)");
  m.def("rows_product_(Tensor(a!) out, Tensor a, Tensor b, bool add) -> ()");
  m.def("columns_product_(Tensor(a!) out, Tensor a, Tensor b, bool add) -> ()");
  m.def(
      "score_sums_(Tensor(a!) neg, Tensor(b!) square, Tensor(c!) own, Tensor scores, int sources, "
      "int first_row, int offset, float? clip) -> ()");
  m.def(
      "score_gradients_(Tensor(a!) out, Tensor scores, Tensor own, Tensor weight, Tensor neg, "
      "Tensor penalty, int sources, int first_row, int offset, float? clip) -> ()");
}
