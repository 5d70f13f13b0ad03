// The backward kernels of grid.cuh.
#include "grid.h"
#include "launchers.cuh"

using namespace rnnfast::cuda;

extern "C" int rnnfast_cuda_grid_backward(const BackwardArgs& args, const Exchange& exchange, uintptr_t stream) {
  return grid::dispatch<grid::Backward>(args, exchange, stream);
}

extern "C" int64_t rnnfast_cuda_grid_backward_limit(rnnfast::DType dtype, bool tf32) {
  return grid::dispatch_limit<grid::Backward>(dtype, tf32);
}
