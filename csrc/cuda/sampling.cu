// amdim_fast::draw_records on CUDA: drawn where they are used, from arguments of the launch, so that
// nothing is copied and nobody waits.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "sampling_args.h"

namespace amdim {
namespace {

constexpr int kThreads = 64;
constexpr int kImages = 144;  // of a launch, whose arguments take at most 4 KB

struct Images {
  int64_t index[kImages], offset[kImages];
  int32_t height[kImages], width[kImages];
};
static_assert(sizeof(Images) + sizeof(Policy) + 64 <= 4096, "arguments of a launch are limited");

__global__ void __launch_bounds__(kThreads)
    draw_kernel(Images images, Policy policy, uint64_t seed, int first, int count, int64_t all,
                int size, View* records, int64_t* layout) {
  const int image = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (image >= count) return;
  const int64_t view = blockIdx.y, place = first + image;
  const Subject subject{seed, images.index[image], view, images.height[image], images.width[image]};
  records[view * all + place] = draw_view(policy, subject, size);
  if (view == 0) {
    layout[3 * place] = images.offset[image];
    layout[3 * place + 1] = images.height[image];
    layout[3 * place + 2] = images.width[image];
  }
}

std::tuple<Tensor, Tensor> draw_records(const Tensor& like, const Tensor& sizes,
                                        const Tensor& sample_index, const Tensor& policy,
                                        int64_t seed, int64_t views, int64_t size) {
  using torch::headeronly::ScalarType;
  const SamplingArgs args = sampling_args(sizes, sample_index, policy, seed, views);
  STD_TORCH_CHECK(views < 65536 && args.count < (int64_t{1} << 31),
                  "views must be below 65536 and images below 2^31");
  Tensor records = torch::stable::new_empty(like, {views, args.count, kViewWords}, ScalarType::Int);
  Tensor layout = torch::stable::new_empty(like, {args.count, 3}, ScalarType::Long);
  if (records.numel() == 0) return {records, layout};
  const int device = like.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "amdim_fast::draw_records: torch has no current CUDA stream");
  int64_t offset = 0;
  for (int64_t first = 0; first < args.count; first += kImages) {
    const int count = static_cast<int>(args.count - first < kImages ? args.count - first : kImages);
    Images images{};
    for (int i = 0; i < count; ++i) {
      const int64_t *entry = args.sizes + 2 * (first + i);
      images.index[i] = args.index[first + i];
      images.offset[i] = offset;
      images.height[i] = static_cast<int32_t>(entry[0]);
      images.width[i] = static_cast<int32_t>(entry[1]);
      offset += 3 * entry[0] * entry[1];
    }
    const dim3 grid((count + kThreads - 1) / kThreads, static_cast<unsigned>(views));
    draw_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        images, args.policy, args.seed, static_cast<int>(first), count, args.count,
        static_cast<int>(size), static_cast<View*>(records.data_ptr()),
        static_cast<int64_t*>(layout.data_ptr()));
    const cudaError_t status = cudaGetLastError();
    STD_TORCH_CHECK(status == cudaSuccess, "amdim_fast::draw_records: ",
                    cudaGetErrorString(status));
  }
  return {records, layout};
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CUDA, m) {
  m.impl("draw_records", TORCH_BOX(&amdim::draw_records));
}
