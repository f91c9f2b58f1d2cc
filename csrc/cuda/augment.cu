// amdim_fast::augment on CUDA: several blocks a view, each with a tile of its rows, in two launches;
// the second finishes what needs the mean of a whole view. Scratch memory is shared memory, or global
// memory if it does not fit there; the same bits either way.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "augment_args.h"

namespace amdim {
namespace {

constexpr int kLanes = 4;
constexpr int kThreads = 256;
constexpr int kTileRows = 32;           // fewer rows a block resize more source rows twice
constexpr int kStrip = 16;
constexpr int64_t kGlobalBlocks = 512;  // with scratch memory in global memory, at a time

struct Block {
  int index, count;
  __device__ void sync(Site) const { __syncthreads(); }
};

// The tiles of all views, and what the phases leave for one another.
struct Tiles {
  int64_t views;          // of all images
  int per_view, pitch;
  long long* luma_totals;  // [views, per_view]
  Lanes<kLanes>* waiting;  // [views, 3, size, pitch]

  AMDIM_HD int64_t count() const { return views * per_view; }

  AMDIM_HD Rows rows(int64_t tile, int size) const {
    const int begin = static_cast<int>(tile % per_view) * kTileRows;
    return {begin, smaller(begin + kTileRows, size)};
  }

  AMDIM_HD Waiting<kLanes> waiting_of(int64_t view, int size) const {
    return {waiting + view * 3 * size * pitch, size, pitch};
  }
};

// Block b makes the tiles b, b + gridDim.x, ...; scratch is null if it is in shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    begin_kernel(AugmentArgs args, Tiles tiles, char* scratch, int64_t bytes, T* out) {
  extern __shared__ __align__(16) char shared[];
  __shared__ Plan plan;
  __shared__ Scratch<kLanes> split;
  const Block block{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const int64_t item = tile / tiles.per_view;
    const Rows rows = tiles.rows(tile, args.size);
    if (block.index == 0) {
      plan = plan_of(args.image(item % args.count), args.params[item], args.size);
      split = split_scratch<kLanes>(scratch == nullptr ? shared : scratch + blockIdx.x * bytes, bytes,
                                    plan.view, args.size, rows.count(), block.count);
    }
    __syncthreads();
    begin_rows<kLanes>(block, plan, rows, args.canvas(out, item),
                       tiles.waiting_of(item, args.size), split, tiles.luma_totals + tile);
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    finish_kernel(AugmentArgs args, Tiles tiles, T* out) {
  __shared__ Plan plan;
  const Block block{static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  const int64_t tile = blockIdx.x, item = tile / tiles.per_view;
  if (block.index == 0) {
    plan = plan_of(args.image(item % args.count), args.params[item], args.size);
  }
  __syncthreads();
  finish_rows<kLanes>(block, plan, tiles.rows(tile, args.size), args.canvas(out, item),
                      tiles.waiting_of(item, args.size),
                      tiles.luma_totals + item * tiles.per_view, tiles.per_view);
}

void check(cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, "amdim_fast::augment: ", cudaGetErrorString(status));
}

Tensor empty_bytes(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

template <class T>
void launch(const AugmentArgs& args, const Tensor& images, int device, cudaStream_t stream,
            T* out) {
  Tiles tiles{args.views * args.count, (args.size + kTileRows - 1) / kTileRows,
              (args.size + kLanes - 1) / kLanes, nullptr, nullptr};
  const int64_t totals = rounded_up(tiles.count() * static_cast<int64_t>(sizeof(long long)), 16);
  const int64_t waiting = tiles.views * 3 * args.size * tiles.pitch * kLanes;
  Tensor between = empty_bytes(images, totals + waiting);
  char* start = static_cast<char*>(between.data_ptr());
  tiles.luma_totals = reinterpret_cast<long long*>(start);
  tiles.waiting = reinterpret_cast<Lanes<kLanes>*>(start + totals);

  int limit = 0;
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  limit -= static_cast<int>(rounded_up(sizeof(Plan) + sizeof(Scratch<kLanes>), 16)) + 64;  // static
  const int rows = smaller(kTileRows, args.size);
  auto bytes = [&](int strip) {
    return rounded_up(scratch_bytes<kLanes>(args.height, args.width, args.size, args.size,
                                            args.size, rows, kThreads, strip), 16);
  };
  const int64_t wanted = bytes(smaller(kStrip, rows));
  const unsigned all = static_cast<unsigned>(tiles.count());
  if (bytes(1) <= limit) {
    const int64_t shared = wanted < limit ? wanted : limit;
    check(cudaFuncSetAttribute(begin_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)));
    begin_kernel<T><<<all, kThreads, shared, stream>>>(args, tiles, nullptr, shared, out);
  } else {
    const int64_t blocks = tiles.count() < kGlobalBlocks ? tiles.count() : kGlobalBlocks;
    Tensor scratch = empty_bytes(images, blocks * wanted);
    begin_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        args, tiles, static_cast<char*>(scratch.data_ptr()), wanted, out);
  }
  check(cudaGetLastError());
  finish_kernel<T><<<all, kThreads, 0, stream>>>(args, tiles, out);
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
    launch(args, images, device, static_cast<cudaStream_t>(stream),
           static_cast<uint32_t*>(out.data_ptr()));
  } else {
    launch(args, images, device, static_cast<cudaStream_t>(stream),
           static_cast<uint16_t*>(out.data_ptr()));
  }
  return out;
}

}  // namespace
}  // namespace amdim

STABLE_TORCH_LIBRARY_IMPL(amdim_fast, CUDA, m) { m.impl("augment", TORCH_BOX(&amdim::augment)); }
