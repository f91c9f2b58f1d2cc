// oneDNN's float32 products into a matrix. Each thread multiplies a part alone and takes the next one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hand_out.h"

namespace amdim {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::transpose;

// Memory: at most 8 MiB for sums, and seven parts a thread, 14 MiB in all while these are of 256 KiB or
// more.
constexpr int64_t kAllFloats = 1 << 21, kLeastFloats = 1 << 16, kMostFloats = 1 << 19;
constexpr int64_t kSums = 8;
constexpr int64_t kPartsPerThread = 4, kSumsPerThread = 2;
constexpr int64_t kMostRows = 512, kLeastRows = 64, kLeastColumns = 64, kLeastInner = 512;

Tensor cut(Tensor tensor, int64_t dim, int64_t first, int64_t count) {
  return torch::stable::narrow(tensor, dim, first, count);
}

// Rows of so many floats that make a part, which stays in the cache of a core.
int64_t part_rows(int64_t columns) {
  const int64_t floats = std::clamp(kAllFloats / (4 * threads()), kLeastFloats, kMostFloats);
  return std::max<int64_t>(1, floats / columns);
}

struct Matrix {
  float* data;
  int64_t rows, columns, row;  // the last is a stride

  explicit Matrix(const Tensor& tensor)
      : data(static_cast<float*>(tensor.data_ptr())),
        rows(tensor.size(0)),
        columns(tensor.size(1)),
        row(tensor.stride(0)) {}
};

Matrix output(const Tensor& out, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == rows && out.size(1) == columns,
                  "out must have the shape of the product");
  STD_TORCH_CHECK(out.scalar_type() == ScalarType::Float && (columns == 1 || out.stride(1) == 1),
                  "out must be float32, its columns side by side");
  return Matrix(out);
}

// a @ b.T, where b may be packed; on this thread alone inside of hand_out.
Tensor product(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(a),
                                    from(b),
                                    from(std::optional<Tensor>()),
                                    from(std::string("none")),
                                    from(std::vector<double>()),
                                    from(std::optional<std::string>())};
  // The macro that repeats the words of the error is newer than torch 2.10.
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("mkldnn::_linear_pointwise", "", stack.data(),
                                               TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void add_rows(float* out, int64_t stride, const float* found, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) out[i * stride + j] += found[i * columns + j];
  }
}

// Has whole pages of memory that is about to be written made in one call, which takes less time than
// a fault for each. Where the system cannot, they are made as they are written.
void make_pages(const float* first, const float* last) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // since Linux 5.14; older C libraries do not name it
  static const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(first) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(last) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, kPopulateWrite);
#endif
}

void rows_product(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  const Matrix to = output(out, a.size(0), b.size(0));
  if (to.rows * to.columns == 0) return;
  const int64_t even = divided(to.rows, kPartsPerThread * threads());
  const int64_t most = part_rows(to.columns);
  const int64_t step = std::clamp(even, std::min(kLeastRows, most), most);
  hand_out(divided(to.rows, step), [&](int64_t part) {
    const int64_t first = part * step, count = std::min(step, to.rows - first);
    const Tensor found = product(cut(a, 0, first, count), b);
    const float* from = static_cast<const float*>(found.data_ptr());
    float* const into = to.data + first * to.row;
    if (!add && to.row == to.columns) make_pages(into, into + count * to.row);
    for (int64_t i = 0; i < count; ++i) {
      float* row = into + i * to.row;
      if (add) {
        add_rows(row, 0, from + i * to.columns, 1, to.columns);
      } else {
        std::copy_n(from + i * to.columns, to.columns, row);
      }
    }
  });
}

// The output is cut in tiles and the inner dimension in groups, each of which has a sum of its own.
// Which groups there are depends on sizes alone.
void columns_product(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  const Matrix to = output(out, a.size(1), b.size(1));
  const int64_t inner = a.size(0), size = to.rows * to.columns;
  if (size == 0) return;
  const int64_t fitting = std::min(kSums, kAllFloats / size);
  const int64_t groups = std::max<int64_t>(1, std::min(fitting, inner / kLeastInner));
  const int64_t bands = divided(to.rows, kMostRows), height = divided(to.rows, bands);
  const int64_t wanted = divided(kSumsPerThread * threads(), groups * bands);
  const int64_t cuts = std::clamp<int64_t>(to.columns / kLeastColumns, 1, wanted);
  const int64_t width = std::min(divided(to.columns, cuts), 2 * part_rows(height));
  const int64_t strips = divided(to.columns, width), tiles = bands * strips;
  const int64_t each = divided(inner, groups), step = part_rows(std::max(height, width / 2));
  std::optional<Tensor> sums;
  if (groups > 1) sums = torch::stable::new_empty(out, {groups, to.rows, to.columns});
  float* const all = sums ? static_cast<float*>(sums->data_ptr()) : to.data;
  const int64_t stride = sums ? to.columns : to.row;
  hand_out(groups * tiles, [&](int64_t part) {
    const int64_t group = part / tiles, row = part % tiles / strips * height;
    const int64_t column = part % strips * width;
    const int64_t rows = std::min(height, to.rows - row);
    const int64_t columns = std::min(width, to.columns - column);
    if (rows <= 0) return;
    const int64_t last = std::min(inner, (group + 1) * each);
    float* const sum = all + group * size + row * stride + column;
    for (int64_t i = 0; i < rows && (sums || !add); ++i) std::fill_n(sum + i * stride, columns, 0.0f);
    for (int64_t first = group * each; first < last; first += step) {
      const int64_t count = std::min(step, last - first);
      Tensor left = torch::stable::new_empty(out, {rows, count});
      torch::stable::copy_(left, transpose(cut(cut(a, 0, first, count), 1, row, rows), 0, 1));
      // With gaps between rows oneDNN takes its slowest way.
      const Tensor right = torch::stable::contiguous(cut(cut(b, 0, first, count), 1, column, columns));
      const Tensor found = product(left, transpose(right, 0, 1));
      add_rows(sum, stride, static_cast<const float*>(found.data_ptr()), rows, columns);
    }
  });
  if (!sums) return;
  torch::stable::parallel_for(0, to.rows, kLeastRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = to.data + i * to.row;
      if (!add) std::fill_n(row, to.columns, 0.0f);
      for (int64_t group = 0; group < groups; ++group) {
        add_rows(row, 0, all + group * size + i * to.columns, 1, to.columns);
      }
    }
  });
}

void fake_product(const Tensor&, const Tensor&, const Tensor&, bool) {}

}  // namespace
}  // namespace amdim

// Not for CPU tensors alone: packed weights have a layout of their own.
STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CompositeExplicitAutograd, m) {
  m.impl("rows_product_", TORCH_BOX(&amdim::rows_product));
  m.impl("columns_product_", TORCH_BOX(&amdim::columns_product));
}

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, Meta, m) {
  m.impl("rows_product_", TORCH_BOX(&amdim::fake_product));
  m.impl("columns_product_", TORCH_BOX(&amdim::fake_product));
}
