// amdim_fast::augment on CUDA: one block per view, its tile in shared memory, or in global memory if
// it does not fit there; the same bits either way.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "augment_args.h"

namespace amdim {
namespace {

constexpr int kLanes = 4;
constexpr int kThreads = 256;
constexpr int kStrip = 16;
constexpr int64_t kGlobalBlocks = 512;  // tiles in global memory at a time

struct Block {
  int index, count;
  __device__ void sync(Site) const { __syncthreads(); }
};

// Block b makes the views b, b + gridDim.x, ...; tiles is null if tiles are in shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    augment_kernel(AugmentArgs args, char* tiles, int64_t tile_bytes, T* out) {
  extern __shared__ __align__(16) char shared[];
  const Block block{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  char* tile = tiles == nullptr ? shared : tiles + blockIdx.x * tile_bytes;
  for (int64_t item = blockIdx.x; item < args.views * args.count; item += gridDim.x) {
    make_view<kLanes>(block, args.image(item % args.count), args.params[item], args.size,
                      static_cast<const T*>(args.table), args.channels_last, tile, tile_bytes,
                      out + item * args.view_elements());
    __syncthreads();
  }
}

void check(cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, "amdim_fast::augment: ", cudaGetErrorString(status));
}

template <class T>
void launch(const AugmentArgs& args, const Tensor& images, int device, cudaStream_t stream,
            void* out) {
  int limit = 0;
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  auto bytes = [&](int strip) {
    return scratch_bytes<kLanes>(args.height, args.width, args.size, args.size, args.size,
                                 kThreads, strip);
  };
  const int64_t items = args.views * args.count;
  const int64_t wanted = bytes(kStrip);
  if (bytes(1) <= limit) {
    const int64_t shared = wanted < limit ? wanted : limit;
    check(cudaFuncSetAttribute(augment_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)));
    augment_kernel<T><<<static_cast<unsigned>(items), kThreads, shared, stream>>>(
        args, nullptr, shared, static_cast<T*>(out));
  } else {
    const int64_t blocks = items < kGlobalBlocks ? items : kGlobalBlocks;
    const int64_t tile_bytes = rounded_up(wanted, 16);
    Tensor tiles = torch::stable::new_empty(images, {blocks * tile_bytes},
                                            torch::headeronly::ScalarType::Byte);
    augment_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        args, static_cast<char*>(tiles.data_ptr()), tile_bytes, static_cast<T*>(out));
  }
  check(cudaGetLastError());
}

Tensor augment(const Tensor& images, const std::optional<Tensor>& layout, const Tensor& params,
               const Tensor& table, int64_t size, int64_t height, int64_t width,
               bool channels_last) {
  const AugmentArgs args =
      augment_args(images, layout, params, table, size, height, width, channels_last);
  Tensor out = empty_views(args, table);
  if (out.numel() == 0) return out;
  const int device = images.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "amdim_fast::augment: torch has no current CUDA stream");
  if (table.scalar_type() == torch::headeronly::ScalarType::Float) {
    launch<uint32_t>(args, images, device, static_cast<cudaStream_t>(stream), out.data_ptr());
  } else {
    launch<uint16_t>(args, images, device, static_cast<cudaStream_t>(stream), out.data_ptr());
  }
  return out;
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CUDA, m) { m.impl("augment", TORCH_BOX(&amdim::augment)); }
