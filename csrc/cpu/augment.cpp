// amdim_fast::augment on CPUs: one thread per view, views in parallel.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "augment_args.h"
#include "clones.h"

// Not FMA: no product may be fused with a sum.
#define AMDIM_VIEW AMDIM_CLONES("avx2")

namespace amdim {
namespace {

constexpr int kLanes = 16;
constexpr int kStrip = 16;

// What one thread works in.
struct Memory {
  std::vector<Lanes<kLanes>> scratch, waiting;

  explicit Memory(const AugmentArgs& args)
      : scratch(scratch_bytes<kLanes>(args.height, args.width, args.size, args.size, args.size,
                                      args.size, 1, kStrip) / kLanes + 1),
        waiting(3LL * args.size * pitch(args)) {}

  static int pitch(const AugmentArgs& args) { return (args.size + kLanes - 1) / kLanes; }
};

template <class T>
inline __attribute__((always_inline)) bool make_view(const AugmentArgs& args, int64_t item,
                                                     Memory& memory, T* out) {
  const Plan plan = plan_of(args.image(item % args.count), args.params[item], args.size);
  const Scratch<kLanes> scratch = split_scratch<kLanes>(
      reinterpret_cast<char*>(memory.scratch.data()),
      static_cast<int64_t>(memory.scratch.size()) * kLanes, plan.view, args.size, args.size, 1);
  const Canvas<T> canvas = args.canvas(out, item);
  const Waiting<kLanes> waiting{memory.waiting.data(), args.size, Memory::pitch(args)};
  const Rows rows{0, args.size};
  long long total = 0;
  begin_rows<kLanes>(Solo{}, plan, rows, canvas, waiting, scratch, &total);
  finish_rows<kLanes>(Solo{}, plan, rows, canvas, waiting, &total, 1);
  return scratch.ring_slabs > 0;
}

AMDIM_VIEW bool make_wide(const AugmentArgs& args, int64_t item, Memory& memory, uint32_t* out) {
  return make_view(args, item, memory, out);
}

AMDIM_VIEW bool make_half(const AugmentArgs& args, int64_t item, Memory& memory, uint16_t* out) {
  return make_view(args, item, memory, out);
}

Tensor augment(const Tensor& images, const std::optional<Tensor>& layout, const Tensor& params,
               const Tensor& table, int64_t size, int64_t height, int64_t width,
               bool channels_last) {
  const AugmentArgs args =
      augment_args(images, layout, params, table, size, height, width, channels_last);
  for (int64_t index = 0; args.layout != nullptr && index < args.count; ++index) {
    STD_TORCH_CHECK(args.fits(index), "layout[", index, "] is [", args.layout[3 * index], ", ",
                    args.layout[3 * index + 1], ", ", args.layout[3 * index + 2],
                    "]; it must be offset, height and width of an image inside the ", args.bytes,
                    " bytes of images, at most height x width = ", height, " x ", width);
  }
  Tensor out = empty_views(args, table);
  const bool wide = table.scalar_type() == torch::headeronly::ScalarType::Float;
  torch::stable::parallel_for(0, args.views * args.count, 1, [&](int64_t begin, int64_t end) {
    Memory memory(args);
    for (int64_t item = begin; item < end; ++item) {
      const bool made =
          wide ? make_wide(args, item, memory, static_cast<uint32_t*>(out.data_ptr()))
               : make_half(args, item, memory, static_cast<uint16_t*>(out.data_ptr()));
      STD_TORCH_CHECK(made, "amdim_fast::augment split its memory wrongly; please report it");
    }
  });
  return out;
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CPU, m) { m.impl("augment", TORCH_BOX(&amdim::augment)); }
