// The contract of the recurrence spread over the whole device (grid.cuh), beyond that of ForwardArgs and BackwardArgs.
#pragma once

#include "../contract.h"

namespace rnnfast {
namespace cuda {

// Blocks exchange their results through `out` (forward, which must not be `pre`) or `dpre` (backward), in vectors of 16
// bytes. Rows of that matrix and of h0 are therefore `stride` elements apart: H rounded up to a multiple of 16 bytes,
// where the elements after H are 0, in the caller's h0 and in the result. Both matrices start at multiples of 16 bytes.
// The other matrices are dense, with any alignment.
//
// `fault` is one word that the device can write and the host can read at any time (pinned memory). A block that waits
// in vain for another's result sets it to the number of the step, from 1 in the order in which steps are taken. The
// results then contain NaN. The kernels never clear it.
struct Exchange {
  int64_t R;       // rows of the exchanged matrix
  int64_t stride;  // elements from row to row
  int32_t* fault;  // [1]
};

}  // namespace cuda
}  // namespace rnnfast

extern "C" {

int rnnfast_cuda_grid_forward(const rnnfast::cuda::ForwardArgs& args, const rnnfast::cuda::Exchange& exchange,
                              uintptr_t stream);
int rnnfast_cuda_grid_backward(const rnnfast::cuda::BackwardArgs& args, const rnnfast::cuda::Exchange& exchange,
                               uintptr_t stream);
// The largest H that the current device can hold; 0 for none.
int64_t rnnfast_cuda_grid_forward_limit(rnnfast::DType dtype, bool tf32);
int64_t rnnfast_cuda_grid_backward_limit(rnnfast::DType dtype, bool tf32);

}  // extern "C"
