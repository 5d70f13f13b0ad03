// Where the rows of a sequence lie, and how long it is: dense and packed batches as one thing.
//
// Row (t, b) is offset(t) + b. Batches only shrink from step to step, so sequence b has a row at the steps t <
// length(b) and none after. A block whose first sequence is b0 has nothing to do from step length(b0) on.
#pragma once

#include "contract.h"
#include "ptx.cuh"

namespace rnnfast {
namespace cuda {

__device__ __forceinline__ int64_t offset(const Sequences& sequences, int64_t t) {
  return sequences.offsets ? sequences.offsets[t] : t * sequences.B;
}

// The number of steps that sequence b takes part in; 0 for b >= B. A binary search, about log2(T) dependent loads.
__device__ inline int64_t length(const Sequences& sequences, int64_t b) {
  if (b >= sequences.B) return 0;
  if (!sequences.offsets) return sequences.T;
  int64_t low = 0, high = sequences.T;  // steps before `low` have row b, steps from `high` on do not
  while (low < high) {
    const int64_t t = (low + high) / 2;
    if (sequences.offsets[t + 1] - sequences.offsets[t] > b) {
      low = t + 1;
    } else {
      high = t;
    }
  }
  return low;
}

}  // namespace cuda
}  // namespace rnnfast
