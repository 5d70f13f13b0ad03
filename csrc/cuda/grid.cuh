// The recurrence spread over the whole device, for layers whose weights no single SM can hold. Forward and backward.
//
//   forward    h_t    = act(pre_t + W h_{t-1})                              exchanged: y = h,     matrix W_hh
//   backward   dpre_t = (dout_t + W^T dpre_{t+1}) act'(h_t);                exchanged: y = dpre,  matrix W_hh^T
//              dh0    = W^T dpre of a sequence's first step
//
// Who holds what
//
//          K: warp 0     warp 1   ...                  The rows of the matrix are dealt to blocks, kRows to each;
//          within
//        +-----------+-----------+----                 a block its warps share K. That piece, kRows x kDepth, lies in
//        the
//   kRows|  block 0  |  block 0  |  ...                registers of the warp from the first step to the last. The
//   states
//        +-----------+-----------+----                 lie in y, in L2: at every step each warp reads its kDepth of the
//   kRows|  block 1  |  block 1  |  ...                last y straight into operands (grid_product.cuh), multiplies,
//   and
//        +-----------+-----------+----                 puts partial sums into shared memory; after one barrier, the
//                                                      block's threads add these up over the warps, in order, apply the
// activation and store kRows elements of the new y. Sequences come in tiles of 8. ceil(H / kRows) blocks form a group,
// which has all of W and takes tiles `group`, `group + groups`, ... at every step, one after the other. More tiles than
// groups are thus a loop inside of a step rather than around all steps: while one tile's exchange is under way, the
// block works on the next. Sequences that join or leave (packed rows) are columns of zeros.
//
// Synchronisation between blocks: the data is its own flag
//
//   y is filled with 0xFF before the launch (in stream order, so every block sees it). A warp that needs elements of y
//   loads them until none of their 32-bit words is kEmpty = 0xFFFFFFFF. No fence, no flag, no barrier:
//   - No word that is stored equals kEmpty: `publish` replaces that one pattern (two NaNs of 16 bits, or one of 32) by
//     another NaN. So a word that is not kEmpty has been stored, a word that is stored will be seen not to be kEmpty.
//   - Every word is stored exactly once, whole, by one thread. An aligned 32-bit access does not tear, also as part of
//   a
//     vector, which the memory model takes for single accesses in any order; that is why every word is looked at. So
//     what is read is either kEmpty or the final value.
//   - Nothing is inferred about one address from another, so relaxed accesses suffice. What they must guarantee is that
//     a store is seen eventually, and is not hidden by a stale line of L1: .relaxed.gpu goes to L2, which is the point
//     where all SMs meet. A weak load would give no such guarantee.
//   - h0 was there before the launch; it is read without looking for kEmpty, which it might contain.
//   Everybody advances: all blocks are resident (cooperative launch) and take (step, tile) in the same order, and an
//   item needs only items of the step before. The least unfinished one, over all blocks, therefore has what it needs.
//
// Synchronisation within a block: one barrier for each item, with partial sums in two buffers that alternate. A thread
// writes to a buffer again two items later, beyond the barrier of the item between, which nobody passes before having
// read the buffer for the last time.
//
// If a block stays away (it can't, short of a fault in the device or in here), waiting ends all the same: a warp that
// has looked `patience` times reports the step in *fault and never waits again. It takes kEmpty for data, which is a
// NaN, and goes on; so do those who wait for it. The kernel ends, and what depends on the missing data is NaN.
//
// Aims at, for H = 1024 in bfloat16 at 1.755 GHz: a store and a load through L2, with half a poll of delay, about
// 680 cycles; kVectors mma in a row, 33 each and twice as many issued, about 170; shared memory twice (33) and a
// barrier (30); adding up and activation, about 100. All in all 0.6 us a step. An estimate: nothing of it is measured
// yet.
#pragma once

#include <stdint.h>

#include "contract.h"
#include "grid.h"
#include "grid_product.cuh"
#include "numbers.cuh"
#include "ptx.cuh"
#include "walk.cuh"

namespace rnnfast {
namespace cuda {
namespace grid {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;

struct Team {
  int slices, groups;  // blocks of a group; blockIdx.x = group * slices + slice
  uint32_t patience;   // how often to look for data before giving up
};

template <class DirectionArgs>
struct KernelArgs {
  DirectionArgs args;
  Exchange exchange;
  Team team;
};

// ---- where we are ----------------------------------------------------------------------------------

struct Step {
  int row = 0;   // its first row; 2^31 rows of so large an H fit no device
  int rows = 0;  // how many it has
};

// One (step, tile) of a group's, and the way to the next.
template <bool kBackward>
class Item {
 public:
  __device__ __forceinline__ Item(const Walk& walk, int first) : tile(first), here(at(walk, 0)), next(at(walk, 1)) {
    settle(walk, first);
  }
  __device__ __forceinline__ void advance(const Walk& walk, int groups, int first) {
    tile += groups * kTile;
    settle(walk, first);
  }
  // The backward walk has one step more, at which the remaining sequences leave, with their dh0.
  __device__ __forceinline__ bool valid(const Walk& walk) const { return step < walk.T + kBackward; }
  // Sequences that have a row here or, in the backward walk, had one at the step before.
  __device__ __forceinline__ int rows() const {
    return kBackward && previous.rows > here.rows ? previous.rows : here.rows;
  }

  int step = 0;  // in the order of the walk
  int tile;      // its first sequence
  Step previous, here, next;

 private:
  __device__ __forceinline__ void settle(const Walk& walk, int first) {
    while (tile >= rows() && valid(walk)) {
      ++step;
      tile = first;
      previous = here;
      here = next;
      next = at(walk, step + 1);
    }
  }
  static __device__ __forceinline__ Step at(const Walk& walk, int step) {
    if (step >= walk.T) return {};
    const int64_t t = walk.reverse != kBackward ? walk.T - 1 - step : step;
    const int row = int(offset(walk, t));
    return {row, int(offset(walk, t + 1)) - row};
  }
};

// ---- the two directions: where states come from, what is done with a product -------------------------

struct Pair {  // of neighbouring units
  float x, y;
};

template <class T>
__device__ __forceinline__ Pair load_pair(const void* matrix, int64_t row, int unit, int H) {
  const T* p = static_cast<const T*>(matrix) + row * H + unit;
  return {unit < H ? to_float(p[0]) : 0.0f, unit + 1 < H ? to_float(p[1]) : 0.0f};
}
template <class T>
__device__ __forceinline__ void store_pair(void* matrix, int64_t row, int unit, int H, Pair value) {
  T* p = static_cast<T*>(matrix) + row * H + unit;
  if (unit < H) p[0] = from_float<T>(value.x);
  if (unit + 1 < H) p[1] = from_float<T>(value.y);
}

template <class T>
struct Forward {
  using Args = ForwardArgs;
  using Item = grid::Item<false>;
  struct Inputs {
    Pair pre;
  };

  static constexpr bool kTransposed = false;

  static __device__ __forceinline__ void* exchanged(const Args& args) { return args.out; }
  // Sequences [0, states) are multiplied: those that have no row at the step before start from `start`.
  static __device__ __forceinline__ int states(const Item& item) { return item.here.rows; }
  static __device__ __forceinline__ const void* start(const Args& args) { return args.h0; }

  static __device__ __forceinline__ Inputs load(const Args& args, const Item& item, int b, int unit) {
    if (b >= item.here.rows) return {};
    return {load_pair<T>(args.pre, item.here.row + b, unit, int(args.walk.H))};
  }
  static __device__ __forceinline__ void prefetch(const Args& args, int64_t row, int unit) {
    ptx::prefetch(static_cast<const T*>(args.pre) + row * args.walk.H + unit);
  }

  static __device__ __forceinline__ Pair finish(const Args& args, const Item& item, int b, int unit, Pair sum,
                                                const Inputs& in) {
    const Pair h{activate<T>(args.activation, in.pre.x + sum.x), activate<T>(args.activation, in.pre.y + sum.y)};
    if (b >= item.next.rows) store_pair<T>(args.h_n, b, unit, int(args.walk.H), h);
    return h;
  }
};

template <class T>
struct Backward {
  using Args = BackwardArgs;
  using Item = grid::Item<true>;
  struct Inputs {
    Pair dh, h;
  };

  static constexpr bool kTransposed = true;

  static __device__ __forceinline__ void* exchanged(const Args& args) { return args.dpre; }
  static __device__ __forceinline__ int states(const Item& item) { return item.previous.rows; }
  static __device__ __forceinline__ const void* start(const Args&) { return nullptr; }  // all states are in y

  static __device__ __forceinline__ Inputs load(const Args& args, const Item& item, int b, int unit) {
    Inputs in{};
    if (b >= item.here.rows) return in;
    const int64_t row = item.here.row + b;
    const int H = int(int(args.walk.H));
    in.h = load_pair<T>(args.out, row, unit, H);
    if (args.dout) in.dh = load_pair<T>(args.dout, row, unit, H);
    if (args.dh_n && b >= item.previous.rows) {  // its last step
      const Pair dh_n = load_pair<T>(args.dh_n, b, unit, H);
      in.dh = {in.dh.x + dh_n.x, in.dh.y + dh_n.y};
    }
    return in;
  }
  static __device__ __forceinline__ void prefetch(const Args& args, int64_t row, int unit) {
    ptx::prefetch(static_cast<const T*>(args.out) + row * args.walk.H + unit);
    if (args.dout) ptx::prefetch(static_cast<const T*>(args.dout) + row * args.walk.H + unit);
  }

  static __device__ __forceinline__ Pair finish(const Args& args, const Item& item, int b, int unit, Pair sum,
                                                const Inputs& in) {
    if (b >= item.previous.rows) sum = {};  // rather than a product with zeros, which W may make NaN
    if (b >= item.here.rows) store_pair<T>(args.dh0, b, unit, int(args.walk.H), sum);
    return {(in.dh.x + sum.x) * derivative_of(args.activation, in.h.x),
            (in.dh.y + sum.y) * derivative_of(args.activation, in.h.y)};
  }
};

// ---- the exchange ----------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t not_empty(uint32_t word, uint32_t nan) { return word == kEmpty ? nan : word; }

template <class T>
__device__ __forceinline__ void publish(T* pair, Pair value) {
  ptx::store_relaxed(reinterpret_cast<uint32_t*>(pair), not_empty(pack<T>(value.x, value.y), 0x7FFF7FFFu));
}
template <>
__device__ __forceinline__ void publish<float>(float* pair, Pair value) {
  constexpr uint32_t kNaN = 0x7FFFFFFFu;
  ptx::store_relaxed(reinterpret_cast<uint2*>(pair),
                     make_uint2(not_empty(ptx::as_bits(value.x), kNaN), not_empty(ptx::as_bits(value.y), kNaN)));
}

__device__ __forceinline__ bool has_empty(uint4 v) {
  return v.x == kEmpty || v.y == kEmpty || v.z == kEmpty || v.w == kEmpty;
}

// The vectors of a state that this lane has: `count` of them, kSpan elements apart; zeros in the place of the others.
template <class Product>
__device__ __forceinline__ void receive(uint4 (&h)[Product::kVectors], const typename Product::T* from, int count,
                                        bool wait, uint32_t& patience, int32_t* fault, int step) {
  uint32_t left = patience;
  while (true) {
    bool empty = false;
#pragma unroll
    for (int v = 0; v < Product::kVectors; ++v)
      h[v] = v < count ? ptx::load_relaxed(reinterpret_cast<const uint4*>(from + v * Product::kSpan))
                       : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int v = 0; v < Product::kVectors; ++v) empty |= has_empty(h[v]);
    if (!ptx::any_in_warp(empty && wait)) return;
    if (left == 0) break;
    --left;
  }
  if (patience != 0 && threadIdx.x % 32 == 0)
    ptx::store_relaxed(reinterpret_cast<uint32_t*>(fault), uint32_t(step + 1));
  patience = 0;
}

// ---- the kernel ------------------------------------------------------------------------------------

template <class Product>
struct Shared {
  float part[2][Product::kWarps][kTile][Product::kRows + 4];  // 4: an mma's stores go to different banks
  typename Product::Scratch scratch;
};

template <class Product, template <class> class DirectionOf>
__global__ void __launch_bounds__(32 * Product::kWarps, 1)
    recur(const KernelArgs<typename DirectionOf<typename Product::T>::Args> all) {
  using T = typename Product::T;
  using Direction = DirectionOf<T>;
  constexpr int kPairs = Product::kRows / 2;  // of units, for each sequence
  static_assert(kPairs * kTile <= 32 * Product::kWarps, "a thread finishes at most one pair");

  const auto& args = all.args;
  const Walk& walk = args.walk;
  auto& shared = shared_memory<Shared<Product>>();
  const int H = int(walk.H), stride = int(all.exchange.stride);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int groups = all.team.groups, group = blockIdx.x / all.team.slices, slice = blockIdx.x % all.team.slices;
  T* const y = static_cast<T*>(Direction::exchanged(args));              // [R, stride]
  const T* const start = static_cast<const T*>(Direction::start(args));  // [B, stride]

  // As a consumer: sequence lane / 4 of the tile, `count` vectors of its state from element k on.
  const int k = warp * Product::kDepth + lane % 4 * Product::kElements;
  const int count = (stride - k + Product::kSpan - 1) / Product::kSpan;
  // As a producer: a pair of units of sequence `column` of the tile.
  const int column = threadIdx.x / kPairs, place = 2 * (threadIdx.x % kPairs);
  const int unit = slice * Product::kRows + place;
  const bool producer = column < kTile && unit < stride;

  Product product;
  Weights<T> weights(static_cast<const T*>(args.w_hh), H, Direction::kTransposed);
  weights.move(slice * Product::kRows, warp * Product::kDepth);
  product.load(weights, lane);

  uint32_t patience = all.team.patience;
  const int first = group * kTile;
  typename Direction::Item item(walk, first);
  for (int buffer = 0; item.valid(walk); buffer ^= 1) {
    // Inputs are loaded an exchange before they are needed, and fetched into L2 a step before that.
    typename Direction::Inputs inputs{};
    if (producer) {
      inputs = Direction::load(args, item, item.tile + column, unit);
      if (item.tile + column < item.next.rows && unit < H)
        Direction::prefetch(args, item.next.row + item.tile + column, unit);
    }

    {
      const int b = item.tile + lane / 4, states = Direction::states(item);
      const bool exchanged = b < item.previous.rows;
      const T* from = exchanged ? y + int64_t(item.previous.row + b) * stride + k : start + int64_t(b) * stride + k;
      uint4 state[Product::kVectors];
      receive<Product>(state, from, b < states ? count : 0, exchanged, patience, all.exchange.fault, item.step);
      product.multiply(state, states - item.tile, lane, shared.scratch, shared.part[buffer][warp]);
    }
    ptx::sync_block();

    const int b = item.tile + column;
    if (producer && b < item.rows()) {
      Pair sum{0.0f, 0.0f};
#pragma unroll
      for (int w = 0; w < Product::kWarps; ++w) {
        const float2 part = ptx::load<float2>(&shared.part[buffer][w][column][place]);
        sum = {sum.x + part.x, sum.y + part.y};
      }
      Pair value = Direction::finish(args, item, b, unit, sum, inputs);
      // Units that only fill up a row must be 0, not act(0 * inf).
      if (unit >= H) value.x = 0.0f;
      if (unit + 1 >= H) value.y = 0.0f;
      if (b < item.here.rows) publish(y + int64_t(item.here.row + b) * stride + unit, value);
    }
    item.advance(walk, groups, first);
  }
}

}  // namespace grid
}  // namespace cuda
}  // namespace rnnfast
