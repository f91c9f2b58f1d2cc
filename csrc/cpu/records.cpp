// amdim_fast::view_records: packs view parameters into records and counts the impossible ones.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <tuple>

#include "shared/view.h"

namespace amdim {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool is_possible(const View& view, int64_t height, int64_t width) {
  bool good = view.top >= 0 && view.left >= 0 && view.height >= 1 && view.width >= 1;
  good = good && static_cast<int64_t>(view.top) + view.height <= height;
  good = good && static_cast<int64_t>(view.left) + view.width <= width;
  good = good && std::llabs(view.dy) < height && std::llabs(view.dx) < width;
  int seen = 0;
  for (int i = 0; i < kOperations; ++i) {
    good = good && view.order[i] >= 0 && view.order[i] < kOperations;
    seen |= good ? 1 << view.order[i] : 0;
    const float factor = view.factor[i];
    good = good && (i == kHue ? factor >= -0.5f && factor <= 0.5f
                              : factor >= 0.0f && factor <= 3.402823466e38f);
  }
  return good && seen == 15;
}

template <class T>
const T* data(const Tensor& tensor, ScalarType type, int64_t elements) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == type && tensor.is_contiguous() && tensor.numel() == elements,
      "amdim_fast::view_records takes contiguous fields of ViewParams");
  return static_cast<const T*>(tensor.data_ptr());
}

std::tuple<Tensor, Tensor> view_records(const Tensor& crop, const Tensor& translate,
                                        const Tensor& flip, const Tensor& jitter,
                                        const Tensor& order, const Tensor& brightness,
                                        const Tensor& contrast, const Tensor& saturation,
                                        const Tensor& hue, const Tensor& gray, const Tensor& sizes,
                                        const Tensor& windows) {
  STD_TORCH_CHECK(crop.dim() == 3, "crop must be [V, N, 4]");
  const int64_t views = crop.size(0), count = crop.size(1), items = views * count;
  const auto* boxes = data<int32_t>(crop, ScalarType::Int, 4 * items);
  const auto* shifts = data<int32_t>(translate, ScalarType::Int, 2 * items);
  const auto* orders = data<int32_t>(order, ScalarType::Int, 4 * items);
  const auto* flips = data<bool>(flip, ScalarType::Bool, items);
  const auto* jitters = data<bool>(jitter, ScalarType::Bool, items);
  const auto* grays = data<bool>(gray, ScalarType::Bool, items);
  const float* factors[kOperations] = {data<float>(brightness, ScalarType::Float, items),
                                       data<float>(contrast, ScalarType::Float, items),
                                       data<float>(saturation, ScalarType::Float, items),
                                       data<float>(hue, ScalarType::Float, items)};
  const auto* extents = data<int64_t>(sizes, ScalarType::Long, 2 * count);
  const bool shared = windows.dim() == 1;
  const auto* window = data<int32_t>(windows, ScalarType::Int, shared ? 4 : 4 * count);

  Tensor records = torch::stable::empty({views, count, kViewWords}, ScalarType::Int);
  Tensor impossible = torch::stable::empty({}, ScalarType::Long);
  auto* out = static_cast<View*>(records.data_ptr());
  int64_t bad = 0;
  for (int64_t item = 0; item < items; ++item) {
    const int64_t n = item % count;
    const int32_t* box = boxes + 4 * item;
    const int32_t* place = window + (shared ? 0 : 4 * n);
    View& view = out[item];
    view = {box[0], box[1], box[2], box[3], place[0], place[1], place[2], place[3],
            shifts[2 * item], shifts[2 * item + 1], {}, {}, 0};
    for (int i = 0; i < kOperations; ++i) {
      view.order[i] = orders[4 * item + i];
      view.factor[i] = factors[i][item];
    }
    view.flags = kFlip * flips[item] + kJitter * jitters[item] + kGray * grays[item];
    bad += !is_possible(view, extents[2 * n], extents[2 * n + 1]);
  }
  *static_cast<int64_t*>(impossible.data_ptr()) = bad;
  return {records, impossible};
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) {
  m.impl("view_records", TORCH_BOX(&amdim::view_records));
}
