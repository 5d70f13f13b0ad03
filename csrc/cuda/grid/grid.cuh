// The recurrence spread over the whole device, for layers whose weights no single SM can hold. Forward and backward.
//
//   forward    h_t    = act(pre_t + W h_{t-1})                     exchanged: y = h,     matrix W_hh
//   backward   dpre_t = (dout_t + W^T dpre_{t+1}) act'(h_t)        exchanged: y = dpre,  matrix W_hh^T
//              dh0    = W^T dpre of a sequence's first step
//
// Sums are float32; a state is rounded to the type of y when it is stored there, and that is what the next step reads.
// In 16 bits this holds for dpre, too.
//
// Who holds what
//
//   matrix [H, H]      K: warp 0    warp 1    ...       y [rows, H], in L2: tiles of 8 sequences
//                      +----------+----------+----            group 0: tiles 0, G, 2 G, ...
//      rows of block 0 | kRows x  |          |                group 1: tiles 1, G + 1, ...
//                      |  kDepth  |          |                ... of G groups
//                      +----------+----------+----
//      rows of block 1 |          |          |
//
//   The rows of the matrix are shared by the blocks, kRows to each; within a block its warps share K. Such a piece,
//   kRows x kDepth, stays in the registers of its warp from the first step to the last. At every step each warp reads
//   its kDepth elements of the states of the step before from L2 into operands, multiplies (product.cuh), and
//   stores partial sums to shared memory. After one barrier the block's threads add these up over the warps, always in
//   the same order, apply the activation and store the block's kRows elements of the new states.
//
//   A group is ceil(H / kRows) blocks, which together hold all of the matrix. It computes its tiles at every step, one
//   after the other: with more tiles than groups, the loop over tiles is inside the loop over steps, and the group
//   computes the next tile while one tile's exchange is under way. Sequences that have not begun or have ended (packed
//   rows) count as zeros.
//
// Synchronisation between blocks, by the data itself
//
//   y is filled with 0xFF before the launch, in stream order. A warp that needs elements of y loads them until none
//   of their 32-bit words is kEmpty = 0xFFFFFFFF. There is no fence, no flag and no barrier, because
//   - no word that is stored is kEmpty: `publish` replaces that one pattern (two NaNs of 16 bits, or one of 32) by
//     another NaN. So a word that is not kEmpty has been stored, and one that has been stored is not taken for
//     kEmpty;
//   - every word is stored once, as a whole, by one thread. Aligned 32-bit accesses do not tear. The words of a vector
//     are accesses of their own, in any order, so each one is compared. A word that is read is kEmpty or final;
//   - nothing is inferred about one address from another, so relaxed accesses suffice. They have to guarantee that a
//     store becomes visible: .relaxed.gpu goes to L2, which all SMs share, and not to a line of L1 that may be stale;
//   - h0 has been there since before the launch. It is read without looking for kEmpty, which it might contain.
//   No block waits for ever: all blocks are resident (the launch is cooperative) and take (step, tile) in the same
//   order, and what one needs was made at the step before. So the least (step, tile) that is unfinished anywhere can be
//   finished.
//
// Synchronisation within a block
//
//   One barrier for each (step, tile), with two buffers of partial sums in turn. A thread writes to a buffer again
//   two items later, after the barrier of the item between, which nobody passes before having read that buffer for
//   the last time.
//
// If a block waits in vain all the same
//
//   Waiting is bounded: a warp that has looked `patience` times reports the step in *fault and never waits again. It
//   uses kEmpty, a NaN, as data, so the kernel ends, with NaN in all that depends on the missing data.
//
// The floor, for H = 1024 in bfloat16
//
//   In cycles: a store and a load through L2 and half a look between, 680; the states of a tile, 16 KB for every block
//   at 64 bytes a cycle, 256; 8 mma for each 16 rows, in two chains of latency 33, 130; partial sums into shared memory
//   and out of it, 70; the barrier, 30; adding up and tanh, 90. The sum is 1260, or 0.72 us at 1.755 GHz. Its parts are
//   estimates. An H100 takes 1.1 us a step at H = 1024 and 0.9 at H = 512, the call and the input's product included
//   (bfloat16, B = 16); a store and a load through L2 take 590 cycles there.
#pragma once

#include <stdint.h>

#include "../contract.h"
#include "../numbers.cuh"
#include "../ptx.cuh"
#include "direction.cuh"
#include "grid.h"
#include "product.cuh"

namespace rnnfast {
namespace cuda {
namespace grid {

constexpr uint32_t kEmpty = 0xFFFFFFFFu;

struct BlockLayout {
  int slices, groups;  // blocks of a group; blockIdx.x = group * slices + slice
  uint32_t patience;   // how often to look for data before giving up
};

template <class DirectionArgs>
struct KernelArgs {
  DirectionArgs args;
  Exchange exchange;
  BlockLayout layout;
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

// Loads this lane's vectors of a state: `count` of them, kSpan elements apart, and zeros in place of the others.
template <class Product>
__device__ __forceinline__ void receive(uint4 (&h)[Product::kVectors], const typename Product::T* from, int count,
                                        bool wait, uint32_t& patience, int32_t* fault, int step) {
#pragma unroll
  for (int v = 0; v < Product::kVectors; ++v)
    h[v] = v < count ? make_uint4(kEmpty, kEmpty, kEmpty, kEmpty) : make_uint4(0, 0, 0, 0);
  uint32_t left = patience;
  while (true) {
    // Vectors that have arrived are not loaded again. At 64 bytes a cycle a look at all 16 KB of H = 1024 takes an SM
    // 256 cycles, which would delay the vectors that have not arrived.
    bool empty = false;
#pragma unroll
    for (int v = 0; v < Product::kVectors; ++v)
      if (has_empty(h[v])) h[v] = ptx::load_relaxed(reinterpret_cast<const uint4*>(from + v * Product::kSpan));
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
  float part[2][Product::kWarps][kTile][Product::kRows + 4];  // + 4: an mma's stores go to different banks
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
  const Sequences& sequences = args.sequences;
  auto& shared = shared_memory<Shared<Product>>();
  const int H = int(sequences.H), stride = int(all.exchange.stride);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int groups = all.layout.groups, group = blockIdx.x / all.layout.slices, slice = blockIdx.x % all.layout.slices;
  T* const y = static_cast<T*>(Direction::exchanged(args));              // [R, stride]
  const T* const start = static_cast<const T*>(Direction::start(args));  // [B, stride]

  // This thread as a consumer: sequence lane / 4 of the tile, `count` vectors of its state from element k on.
  const int k = warp * Product::kDepth + lane % 4 * Product::kElements;
  const int count = (stride - k + Product::kSpan - 1) / Product::kSpan;
  // This thread as a producer: a pair of units of sequence `column` of the tile.
  const int column = threadIdx.x / kPairs, place = 2 * (threadIdx.x % kPairs);
  const int unit = slice * Product::kRows + place;
  const bool producer = column < kTile && unit < stride;

  Product product;
  Weights<T> weights(static_cast<const T*>(args.w_hh), H, Direction::kTransposed);
  weights.move(slice * Product::kRows, warp * Product::kDepth);
  product.load(weights, lane);

  uint32_t patience = all.layout.patience;
  const int first = group * kTile;
  typename Direction::Item item(sequences, first);
  for (int buffer = 0; item.valid(sequences); buffer ^= 1) {
    // Inputs are loaded one exchange before they are needed and prefetched into L2 one step before that.
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
      // Units of the padding must be 0, not act(0 * inf).
      if (unit >= H) value.x = 0.0f;
      if (unit + 1 >= H) value.y = 0.0f;
      if (b < item.here.rows) publish(y + int64_t(item.here.row + b) * stride + unit, value);
    }
    item.advance(sequences, groups, first);
  }
}

}  // namespace grid
}  // namespace cuda
}  // namespace rnnfast
