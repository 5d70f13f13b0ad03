// For tests/test_cuda_grid.py: csrc/cuda/grid/grid.cuh in sizes that make several blocks of a small layer, with
// everything that the launchers decide left to the test. The shipped sizes are reached through their launchers.
#include "grid/launchers.cuh"

using namespace rnnfast::cuda;

namespace {

constexpr int kWarps = 2;

// Small, with several blocks to a small layer; Medium and Large are those that are shipped.
template <class T>
struct Tiny : grid::Sizes<T> {
  using Small = grid::Mma<T, 16, 1, kWarps>;
};
struct TinyTf32 : grid::SizesTf32 {
  using Small = grid::Mma<float, 16, 2, kWarps>;
};
struct TinyExact : grid::SizesExact {
  using Small = grid::Ffma<16, 2, kWarps>;
};

struct Options {
  int64_t groups, missing;  // the last `missing` blocks are not launched
  uint32_t patience;
  int size;
};

template <class Product, template <class> class DirectionOf, class Args>
int start(const Args& args, const Exchange& exchange, const Options& options) {
  const int64_t slices = grid::slices_of<Product>(args.sequences.H);
  if (args.sequences.H > grid::capacity<Product>()) return kUnsupported;
  memset(DirectionOf<typename Product::T>::exchanged(args), 0xFF,
         size_t(exchange.R * exchange.stride) * sizeof(typename Product::T));
  return launch(grid::recur<Product, DirectionOf>, slices * options.groups - options.missing, 32 * Product::kWarps,
                sizeof(grid::Shared<Product>), 0, rnnfast::cuda::LaunchMode::kCooperative,
                grid::KernelArgs<Args>{args, exchange, {int(slices), int(options.groups), options.patience}});
}

template <class Sizes, template <class> class DirectionOf, class Args>
int start_sized(const Args& args, const Exchange& exchange, const Options& options) {
  if (options.size == 0) return start<typename Sizes::Small, DirectionOf>(args, exchange, options);
  if (options.size == 1) return start<typename Sizes::Medium, DirectionOf>(args, exchange, options);
  return start<typename Sizes::Large, DirectionOf>(args, exchange, options);
}

template <template <class> class DirectionOf, class Args>
int start_typed(const Args& args, const Exchange& exchange, const Options& options) {
  switch (args.dtype) {
    case rnnfast::DType::kBFloat16:
      return start_sized<Tiny<bf16>, DirectionOf>(args, exchange, options);
    case rnnfast::DType::kFloat16:
      return start_sized<Tiny<f16>, DirectionOf>(args, exchange, options);
    case rnnfast::DType::kFloat32:
      return args.tf32 ? start_sized<TinyTf32, DirectionOf>(args, exchange, options)
                       : start_sized<TinyExact, DirectionOf>(args, exchange, options);
    default:
      return kUnsupported;
  }
}

}  // namespace

extern "C" {

// `groups` 0: through the launcher that is shipped.
int run_grid_forward(const ForwardArgs* args, const Exchange* exchange, int64_t groups, int64_t missing,
                     uint32_t patience, int size) {
  if (groups == 0) return rnnfast_cuda_grid_forward(*args, *exchange, 0);
  return start_typed<grid::Forward>(*args, *exchange, {groups, missing, patience, size});
}
int run_grid_backward(const BackwardArgs* args, const Exchange* exchange, int64_t groups, int64_t missing,
                      uint32_t patience, int size) {
  if (groups == 0) return rnnfast_cuda_grid_backward(*args, *exchange, 0);
  return start_typed<grid::Backward>(*args, *exchange, {groups, missing, patience, size});
}

}  // extern "C"
