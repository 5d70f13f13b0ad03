// Chooses the instantiation of grid.cuh and the number of blocks for a problem, and launches it.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "../launch.cuh"
#include "grid.cuh"

namespace rnnfast {
namespace cuda {
namespace grid {

// The number of looks at y before a block gives up: at 0.15 us for the way to L2 and back, at least ten seconds. It is
// long because the blocks of a grid may start late while another kernel occupies the device.
constexpr uint32_t kPatience = 1u << 26;

// An instantiation holds a matrix of up to kDepth * kWarps columns: Small 512, Medium 1024, Large 2048. With more rows
// to a block, fewer blocks read all of a state at every step, and more groups share the tiles. The rows are as many as
// the registers allow, of which an SM has 65536.
template <class T>
struct Sizes {  // bfloat16, float16
  using Small = Mma<T, 32, 2, 8>;
  using Medium = Mma<T, 32, 4, 8>;
  using Large = Mma<T, 32, 4, 16>;
};
struct SizesTf32 {
  using Small = Mma<float, 32, 4, 8>;
  using Medium = Mma<float, 32, 8, 8>;
  using Large = Mma<float, 16, 8, 16>;
};
struct SizesExact {
  using Small = Ffma<16, 4, 8>;
  using Medium = Ffma<16, 8, 8>;
  using Large = Ffma<16, 8, 16>;
};

template <class Product>
constexpr int64_t capacity() {
  return Product::kDepth * Product::kWarps;
}
// Rows of y are multiples of 16 bytes.
template <class Product>
constexpr int64_t stride_of(int64_t H) {
  return (H + Product::kElements - 1) / Product::kElements * Product::kElements;
}
template <class Product>
constexpr int64_t slices_of(int64_t H) {
  return (stride_of<Product>(H) + Product::kRows - 1) / Product::kRows;
}

// How many blocks of the kernel the current device holds at once, or a negative cudaError_t.
template <class Product, template <class> class DirectionOf>
int64_t resident() {
  const auto kernel = recur<Product, DirectionOf>;
  constexpr size_t kShared = sizeof(Shared<Product>);
  static_assert(kShared <= 99 * 1024, "what a block may have on every device since sm_80");
  int device, multiprocessors, blocks;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess && kShared > 48 * 1024)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * Product::kWarps, kShared);
  if (error != cudaSuccess) return cudaGetLastError(), -int64_t(error);
  return int64_t(blocks) * multiprocessors;
}

// The largest H whose blocks are all resident.
template <class Product, template <class> class DirectionOf>
int64_t largest() {
  const int64_t rows = resident<Product, DirectionOf>() * Product::kRows;
  return rows < 0 ? 0 : rows < capacity<Product>() ? rows : capacity<Product>();
}
template <class S, template <class> class DirectionOf>
int64_t limit() {
  const int64_t small = largest<typename S::Small, DirectionOf>();
  if (small < capacity<typename S::Small>()) return small;
  const int64_t medium = largest<typename S::Medium, DirectionOf>();
  if (medium < capacity<typename S::Medium>()) return medium > small ? medium : small;
  const int64_t large = largest<typename S::Large, DirectionOf>();
  return large > medium ? large : medium;
}

template <class Product, template <class> class DirectionOf, class Args>
int run(const Args& args, const Exchange& exchange, uintptr_t stream) {
  using T = typename Product::T;
  const Sequences& sequences = args.sequences;
  const int64_t slices = slices_of<Product>(sequences.H), tiles = (sequences.B + kTile - 1) / kTile;
  void* y = DirectionOf<T>::exchanged(args);
  if (exchange.fault == nullptr || exchange.stride != stride_of<Product>(sequences.H) ||
      reinterpret_cast<uintptr_t>(y) % 16 != 0 || reinterpret_cast<uintptr_t>(DirectionOf<T>::start(args)) % 16 != 0)
    return kUnsupported;
  if (sequences.T > INT32_MAX / 2 || sequences.B > INT32_MAX / 2 || exchange.R > INT32_MAX) return kTooManyRows;
  const int64_t blocks = resident<Product, DirectionOf>();
  if (blocks < 0) return int(-blocks);
  if (blocks < slices) return kNotResident;
  const int64_t groups = blocks / slices < tiles ? blocks / slices : tiles;
  // Filling y is a pass over it at the speed of memory; it replaces flags.
  const cudaError_t error = cudaMemsetAsync(y, kEmpty & 0xFF, size_t(exchange.R * exchange.stride) * sizeof(T),
                                            reinterpret_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return cudaGetLastError(), error;
  return launch(recur<Product, DirectionOf>, slices * groups, 32 * Product::kWarps, sizeof(Shared<Product>), stream,
                LaunchMode::kCooperative,
                KernelArgs<Args>{args, exchange, BlockLayout{int(slices), int(groups), kPatience}});
}

template <class S, template <class> class DirectionOf, class Args>
int run_sized(const Args& args, const Exchange& exchange, uintptr_t stream) {
  const int64_t H = args.sequences.H;
  if (H <= capacity<typename S::Small>()) return run<typename S::Small, DirectionOf>(args, exchange, stream);
  if (H <= capacity<typename S::Medium>()) return run<typename S::Medium, DirectionOf>(args, exchange, stream);
  if (H <= capacity<typename S::Large>()) return run<typename S::Large, DirectionOf>(args, exchange, stream);
  return kUnsupported;
}

// The launcher of one direction.
template <template <class> class DirectionOf, class Args>
int dispatch(const Args& args, const Exchange& exchange, uintptr_t stream) {
  if (args.sequences.T == 0 || args.sequences.B == 0) return kUnsupported;
  switch (args.dtype) {
    case DType::kBFloat16:
      return run_sized<Sizes<bf16>, DirectionOf>(args, exchange, stream);
    case DType::kFloat16:
      return run_sized<Sizes<f16>, DirectionOf>(args, exchange, stream);
    case DType::kFloat32:
      return args.tf32 ? run_sized<SizesTf32, DirectionOf>(args, exchange, stream)
                       : run_sized<SizesExact, DirectionOf>(args, exchange, stream);
    default:
      return kUnsupported;
  }
}
template <template <class> class DirectionOf>
int64_t dispatch_limit(DType dtype, bool tf32) {
  switch (dtype) {
    case DType::kBFloat16:
      return limit<Sizes<bf16>, DirectionOf>();
    case DType::kFloat16:
      return limit<Sizes<f16>, DirectionOf>();
    case DType::kFloat32:
      return tf32 ? limit<SizesTf32, DirectionOf>() : limit<SizesExact, DirectionOf>();
    default:
      return 0;
  }
}

}  // namespace grid
}  // namespace cuda
}  // namespace rnnfast
