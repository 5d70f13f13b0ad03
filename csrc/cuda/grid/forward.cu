// The forward kernels of grid.cuh.
#include "grid.h"
#include "launchers.cuh"

using namespace rnnfast::cuda;

extern "C" int rnnfast_cuda_grid_forward(const ForwardArgs& args, const Exchange& exchange, uintptr_t stream) {
  if (args.pre == args.out) return kUnsupported;  // out is filled before pre is read
  return grid::dispatch<grid::Forward>(args, exchange, stream);
}

extern "C" int64_t rnnfast_cuda_grid_forward_limit(rnnfast::DType dtype, bool tf32) {
  return grid::dispatch_limit<grid::Forward>(dtype, tf32);
}
