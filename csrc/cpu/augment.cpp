// amdim_fast::augment on CPUs: one thread per view, views in parallel.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "augment_args.h"

// The AVX2 clone runs where the machine has AVX2. Not FMA: no product may be fused with a sum.
#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define AMDIM_CLONES __attribute__((target_clones("avx2", "default"), flatten))
#else
#define AMDIM_CLONES __attribute__((flatten))
#endif

namespace amdim {
namespace {

constexpr int kLanes = 16;
constexpr int kStrip = 16;

AMDIM_CLONES bool make_wide(const AugmentArgs& args, int64_t index, const View& view, char* memory,
                            int64_t bytes, uint32_t* out) {
  return make_view<kLanes>(Solo{}, args.image(index), view, args.size,
                           static_cast<const uint32_t*>(args.table), args.channels_last, memory,
                           bytes, out);
}

AMDIM_CLONES bool make_half(const AugmentArgs& args, int64_t index, const View& view, char* memory,
                            int64_t bytes, uint16_t* out) {
  return make_view<kLanes>(Solo{}, args.image(index), view, args.size,
                           static_cast<const uint16_t*>(args.table), args.channels_last, memory,
                           bytes, out);
}

Tensor augment(const Tensor& images, const std::optional<Tensor>& layout, const Tensor& params,
               const Tensor& table, int64_t size, int64_t height, int64_t width,
               bool channels_last) {
  const AugmentArgs args =
      augment_args(images, layout, params, table, size, height, width, channels_last);
  Tensor out = empty_views(args, table);
  const bool wide = table.scalar_type() == torch::headeronly::ScalarType::Float;
  const int64_t bytes =
      scratch_bytes<kLanes>(args.height, args.width, args.size, args.size, args.size, 1, kStrip);
  char* start = static_cast<char*>(out.data_ptr());
  torch::stable::parallel_for(0, args.views * args.count, 1, [&](int64_t begin, int64_t end) {
    std::vector<Lanes<kLanes>> memory(bytes / kLanes + 1);
    char* scratch = reinterpret_cast<char*>(memory.data());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item * args.view_elements();
      const int64_t index = item % args.count;
      const bool made =
          wide ? make_wide(args, index, args.params[item], scratch, bytes,
                           reinterpret_cast<uint32_t*>(start) + first)
               : make_half(args, index, args.params[item], scratch, bytes,
                           reinterpret_cast<uint16_t*>(start) + first);
      STD_TORCH_CHECK(made, "layout has an image larger than height x width");
    }
  });
  return out;
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) { m.impl("augment", TORCH_BOX(&amdim::augment)); }
