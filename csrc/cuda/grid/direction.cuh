// The two directions of the recurrence over the grid: the rows at each step, the states that are multiplied, and the
// use of a product.
#pragma once

#include <stdint.h>

#include "../contract.h"
#include "../numbers.cuh"
#include "../ptx.cuh"
#include "../sequences.cuh"
#include "product.cuh"

namespace rnnfast {
namespace cuda {
namespace grid {

// ---- the position of a block in its work -----------------------------------------------------------

struct StepRows {
  int row = 0;   // its first row; the launcher refuses 2^31 rows and more
  int rows = 0;  // how many it has
};

// One (step, tile) of a group, and the way to the next.
template <bool kBackward>
class Item {
 public:
  __device__ __forceinline__ Item(const Sequences& sequences, int first)
      : tile(first), here(at(sequences, 0)), next(at(sequences, 1)) {
    settle(sequences, first);
  }
  __device__ __forceinline__ void advance(const Sequences& sequences, int groups, int first) {
    tile += groups * kTile;
    settle(sequences, first);
  }
  // The backward pass has one step more, at which the remaining sequences leave, with their dh0.
  __device__ __forceinline__ bool valid(const Sequences& sequences) const { return step < sequences.T + kBackward; }
  // Sequences that have a row here or, in the backward pass, had one at the step before.
  __device__ __forceinline__ int rows() const {
    return kBackward && previous.rows > here.rows ? previous.rows : here.rows;
  }

  int step = 0;  // in the order in which steps are taken
  int tile;      // its first sequence
  StepRows previous, here, next;

 private:
  __device__ __forceinline__ void settle(const Sequences& sequences, int first) {
    while (tile >= rows() && valid(sequences)) {
      ++step;
      tile = first;
      previous = here;
      here = next;
      next = at(sequences, step + 1);
    }
  }
  static __device__ __forceinline__ StepRows at(const Sequences& sequences, int step) {
    if (step >= sequences.T) return {};
    const int64_t t = sequences.reverse != kBackward ? sequences.T - 1 - step : step;
    const int row = int(offset(sequences, t));
    return {row, int(offset(sequences, t + 1)) - row};
  }
};

// ---- the two directions ----------------------------------------------------------------------------

struct Pair {  // of neighbouring units
  float x, y;
};

// A pair as it is in memory. It is converted when it is needed: converting it earlier would wait for the load.
template <class T>
struct Raw {
  T x, y;
  __device__ __forceinline__ Pair pair() const { return {to_float(x), to_float(y)}; }
};

template <class T>
__device__ __forceinline__ Raw<T> load_pair(const void* matrix, int64_t row, int unit, int H) {
  const T* p = static_cast<const T*>(matrix) + row * H + unit;
  return {unit < H ? p[0] : T{}, unit + 1 < H ? p[1] : T{}};
}
template <class T>
__device__ __forceinline__ void store_pair(void* matrix, int64_t row, int unit, int H, Pair value) {
  T* p = static_cast<T*>(matrix) + row * H + unit;
  if (unit < H) p[0] = from_float<T>(value.x);
  if (unit + 1 < H) p[1] = from_float<T>(value.y);
}

// A direction says
//   - what is exchanged, y, and whether the matrix is transposed
//   - that sequences [0, states) are multiplied; states of those with no row at the step before are in `start`
//   - what to load for a pair of units of sequence b besides its product, and how to bring that of another row into L2
//   - how the product is finished to be the pair's new state, and what else is stored then

template <class T>
struct Forward {
  using Args = ForwardArgs;
  using Item = grid::Item<false>;
  struct Inputs {
    Raw<T> pre;
  };
  static constexpr bool kTransposed = false;

  static __host__ __device__ __forceinline__ void* exchanged(const Args& args) { return args.out; }
  static __device__ __forceinline__ int states(const Item& item) { return item.here.rows; }
  static __host__ __device__ __forceinline__ const void* start(const Args& args) { return args.h0; }

  static __device__ __forceinline__ Inputs load(const Args& args, const Item& item, int b, int unit) {
    if (b >= item.here.rows) return {};
    return {load_pair<T>(args.pre, item.here.row + b, unit, int(args.sequences.H))};
  }
  static __device__ __forceinline__ void prefetch(const Args& args, int64_t row, int unit) {
    ptx::prefetch(static_cast<const T*>(args.pre) + row * args.sequences.H + unit);
  }

  static __device__ __forceinline__ Pair finish(const Args& args, const Item& item, int b, int unit, Pair sum,
                                                const Inputs& in) {
    const Pair pre = in.pre.pair();
    const Pair h{activate<T>(args.activation, pre.x + sum.x), activate<T>(args.activation, pre.y + sum.y)};
    if (b >= item.next.rows) store_pair<T>(args.h_n, b, unit, int(args.sequences.H), h);
    return h;
  }
};

template <class T>
struct Backward {
  using Args = BackwardArgs;
  using Item = grid::Item<true>;
  struct Inputs {
    Raw<T> dout, h;
  };
  static constexpr bool kTransposed = true;

  static __host__ __device__ __forceinline__ void* exchanged(const Args& args) { return args.dpre; }
  static __device__ __forceinline__ int states(const Item& item) { return item.previous.rows; }
  static __host__ __device__ __forceinline__ const void* start(const Args&) { return nullptr; }  // never needed

  static __device__ __forceinline__ Inputs load(const Args& args, const Item& item, int b, int unit) {
    Inputs in{};
    if (b >= item.here.rows) return in;
    const int64_t row = item.here.row + b;
    const int H = int(args.sequences.H);
    in.h = load_pair<T>(args.out, row, unit, H);
    if (args.dout) in.dout = load_pair<T>(args.dout, row, unit, H);
    return in;
  }
  static __device__ __forceinline__ void prefetch(const Args& args, int64_t row, int unit) {
    ptx::prefetch(static_cast<const T*>(args.out) + row * args.sequences.H + unit);
    if (args.dout) ptx::prefetch(static_cast<const T*>(args.dout) + row * args.sequences.H + unit);
  }

  static __device__ __forceinline__ Pair finish(const Args& args, const Item& item, int b, int unit, Pair sum,
                                                const Inputs& in) {
    if (b >= item.previous.rows) {  // its last step: dh_n, rather than a product with zeros, which W may make NaN
      sum = args.dh_n ? load_pair<T>(args.dh_n, b, unit, int(args.sequences.H)).pair() : Pair{0.0f, 0.0f};
    } else if (b >= item.here.rows) {  // it had its first step
      store_pair<T>(args.dh0, b, unit, int(args.sequences.H), sum);
    }
    const Pair dout = in.dout.pair(), h = in.h.pair();
    return {(dout.x + sum.x) * derivative_of(args.activation, h.x),
            (dout.y + sum.y) * derivative_of(args.activation, h.y)};
  }
};

}  // namespace grid
}  // namespace cuda
}  // namespace rnnfast
