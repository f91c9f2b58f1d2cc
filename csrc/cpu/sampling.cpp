// amdim_fast::sample_views and amdim_fast::draw_records: parameters of views, as fields or records.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "sampling_args.h"

namespace amdim {
namespace {

using torch::headeronly::ScalarType;

constexpr int kGrain = 64;

// Calls use(item, view) for each view, item = view number * N + image.
template <class Use>
void draw_all(const SamplingArgs& args, int size, Use use) {
  torch::stable::parallel_for(
      0, args.views * args.count, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const Subject subject = args.subject(item % args.count, item / args.count);
          use(item, draw_view(args.policy, subject, size));
        }
      });
}

using Fields = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                          Tensor>;

Fields sample_views(const Tensor& sizes, const Tensor& sample_index, const Tensor& policy,
                    int64_t seed, int64_t views) {
  const SamplingArgs args = sampling_args(sizes, sample_index, policy, seed, views);
  auto field = [&](ScalarType type) { return torch::stable::empty({views, args.count}, type); };
  auto rows = [&](int64_t length) {
    return torch::stable::empty({views, args.count, length}, ScalarType::Int);
  };
  Fields fields{rows(4),
                rows(2),
                field(ScalarType::Bool),
                field(ScalarType::Bool),
                rows(4),
                field(ScalarType::Float),
                field(ScalarType::Float),
                field(ScalarType::Float),
                field(ScalarType::Float),
                field(ScalarType::Bool)};
  auto* crop = static_cast<int32_t*>(std::get<0>(fields).data_ptr());
  auto* translate = static_cast<int32_t*>(std::get<1>(fields).data_ptr());
  auto* flip = static_cast<bool*>(std::get<2>(fields).data_ptr());
  auto* jitter = static_cast<bool*>(std::get<3>(fields).data_ptr());
  auto* order = static_cast<int32_t*>(std::get<4>(fields).data_ptr());
  float* factor[kOperations] = {static_cast<float*>(std::get<5>(fields).data_ptr()),
                                static_cast<float*>(std::get<6>(fields).data_ptr()),
                                static_cast<float*>(std::get<7>(fields).data_ptr()),
                                static_cast<float*>(std::get<8>(fields).data_ptr())};
  auto* gray = static_cast<bool*>(std::get<9>(fields).data_ptr());
  draw_all(args, 0, [&](int64_t item, const View& view) {
    const int32_t box[4] = {view.top, view.left, view.height, view.width};
    for (int i = 0; i < 4; ++i) crop[4 * item + i] = box[i];
    translate[2 * item] = view.dy;
    translate[2 * item + 1] = view.dx;
    for (int i = 0; i < kOperations; ++i) {
      order[4 * item + i] = view.order[i];
      factor[i][item] = view.factor[i];
    }
    flip[item] = (view.flags & kFlip) != 0;
    jitter[item] = (view.flags & kJitter) != 0;
    gray[item] = (view.flags & kGray) != 0;
  });
  return fields;
}

std::tuple<Tensor, Tensor> draw_records(const Tensor& images, const Tensor& sizes,
                                        const Tensor& sample_index, const Tensor& policy,
                                        int64_t seed, int64_t views, int64_t size) {
  const SamplingArgs args = sampling_args(sizes, sample_index, policy, seed, views);
  Tensor records = torch::stable::empty({views, args.count, kViewWords}, ScalarType::Int);
  Tensor layout = torch::stable::empty({args.count, 3}, ScalarType::Long);
  auto* out = static_cast<View*>(records.data_ptr());
  draw_all(args, static_cast<int>(size),
           [&](int64_t item, const View& view) { out[item] = view; });
  auto* row = static_cast<int64_t*>(layout.data_ptr());
  int64_t offset = 0;
  for (int64_t image = 0; image < args.count; ++image, row += 3) {
    row[0] = offset;
    row[1] = args.sizes[2 * image];
    row[2] = args.sizes[2 * image + 1];
    offset += 3 * row[1] * row[2];
  }
  return {records, layout};
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) {
  m.impl("sample_views", TORCH_BOX(&amdim::sample_views));
  m.impl("draw_records", TORCH_BOX(&amdim::draw_records));
}
