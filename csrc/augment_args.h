// The arguments of amdim_fast::augment, checked, in the form that the CPU and CUDA code reads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "shared/make_view.h"

namespace amdim {

using torch::stable::Tensor;

// Plain data, passed to kernels by value.
struct AugmentArgs {
  const uint8_t* images;
  const int64_t* layout;  // [N, 3] offset, height, width of packed images, or null
  int64_t image_stride, row_stride, column_stride, channel_stride;
  int64_t bytes;      // of packed images
  int height, width;  // of all images, or the largest ones
  int64_t count;      // N
  int64_t views;      // V
  const View* params;
  const void* table;
  int size;
  bool channels_last;

  // Whether a row of the layout is an image of at most height x width inside the buffer.
  AMDIM_HD bool fits(int64_t index) const {
    const int64_t *entry = layout + 3 * index, start = entry[0], rows = entry[1], columns = entry[2];
    return rows >= 1 && rows <= height && columns >= 1 && columns <= width && start >= 0 &&
           start <= bytes - 3 * rows * columns;
  }

  // A row of the layout that does not fit gives an image of one gray pixel, its own first byte: CUDA
  // blocks cannot raise, and must not read beyond the buffer.
  AMDIM_HD Image image(int64_t index) const {
    if (layout == nullptr) {
      return {images + index * image_stride, height, width, row_stride, column_stride,
              channel_stride};
    }
    const int64_t* entry = layout + 3 * index;
    if (!fits(index)) return {reinterpret_cast<const uint8_t*>(entry), 1, 1, 0, 0, 0};
    return {images + entry[0], static_cast<int>(entry[1]), static_cast<int>(entry[2]),
            3 * entry[2], 3, 1};
  }

  template <class T>
  AMDIM_HD Canvas<T> canvas(T* out, int64_t item) const {
    return {out + item * view_elements(), static_cast<const T*>(table), size, channels_last};
  }

  AMDIM_HD int64_t view_elements() const { return 3 * static_cast<int64_t>(size) * size; }
};

inline AugmentArgs augment_args(const Tensor& images, const std::optional<Tensor>& layout,
                                const Tensor& params, const Tensor& table, int64_t size,
                                int64_t height, int64_t width, bool channels_last) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Byte, "images must be uint8");
  STD_TORCH_CHECK(params.scalar_type() == ScalarType::Int && params.dim() == 3 &&
                      params.size(2) == kViewWords && params.is_contiguous(),
                  "params must be contiguous int32 [V, N, 19]");
  const ScalarType type = table.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  "table must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == 3 && table.size(1) == 256 &&
                      table.is_contiguous(),
                  "table must be [3, 256], contiguous");
  STD_TORCH_CHECK(params.device() == images.device() && table.device() == images.device(),
                  "images, params and table must be on one device");
  STD_TORCH_CHECK(size >= 1 && size <= 8192, "size is ", size, "; it must be in 1..8192");
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height < (1 << 24) && width < (1 << 24),
                  "height is ", height, " and width ", width, "; they must be in 1..2^24");
  AugmentArgs args{};
  args.images = static_cast<const uint8_t*>(images.data_ptr());
  args.count = params.size(1);
  args.views = params.size(0);
  if (layout.has_value()) {
    STD_TORCH_CHECK(layout->scalar_type() == ScalarType::Long && layout->dim() == 2 &&
                        layout->size(0) == args.count && layout->size(1) == 3 &&
                        layout->is_contiguous() && layout->device() == images.device(),
                    "layout must be contiguous int64 [N, 3] on the device of images");
    STD_TORCH_CHECK(images.dim() == 1 && images.is_contiguous(),
                    "images must be one contiguous buffer [bytes] because there is a layout");
    args.layout = static_cast<const int64_t*>(layout->data_ptr());
    args.bytes = images.numel();
  } else {
    STD_TORCH_CHECK(images.dim() == 4 && images.size(0) == args.count &&
                        images.size(1) == height && images.size(2) == width && images.size(3) == 3,
                    "images must be [N, height, width, 3], N as in params");
    args.image_stride = images.stride(0);
    args.row_stride = images.stride(1);
    args.column_stride = images.stride(2);
    args.channel_stride = images.stride(3);
  }
  args.height = static_cast<int>(height);
  args.width = static_cast<int>(width);
  args.params = static_cast<const View*>(params.data_ptr());
  args.table = table.data_ptr();
  args.size = static_cast<int>(size);
  args.channels_last = channels_last;
  return args;
}

inline Tensor empty_views(const AugmentArgs& args, const Tensor& table) {
  const int64_t side = args.size;
  if (args.channels_last) {
    return torch::stable::new_empty(table, {args.views, args.count, side, side, 3});
  }
  return torch::stable::new_empty(table, {args.views, args.count, 3, side, side});
}

}  // namespace amdim
