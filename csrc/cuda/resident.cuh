// The recurrence of a whole sequence in one block, with W_hh in the block's registers.
//
//   forward    h_t = act(pre_t + W_hh h_{t-1})                         for every t, and h_n
//   backward   g_t = (dout_t + W_hh^T g_{t+1}) act'(h_t),  g = dpre    for every t backwards, and dh0 = W_hh^T g_0
//
// Who holds what. A block has a few sequences (its tile) and walks them from their first step to their last; it never
// talks to another block. Its threads hold all of W_hh, padded with zeros, in registers from before the first step
// until after the last: an Engine (resident_matrix.cuh, resident_fma.cuh) says which thread holds which part of it, and
// which elements of the tile's state [tile, H] it owns. The state itself is in shared memory, where the whole block
// reads it as the product's right-hand side, and in its owner's registers:
//
//        registers, all steps            shared memory, two buffers        global memory, every step
//      +----------------------+        +-------------+                   +--------------------+
//      |  W_hh  [H, H]        |   x    | y [tile, H] |    + (pre or dout) |  pre_t [tile, H]   |
//      |  a slice per warp    |        +-------------+    then act        +--------------------+
//      +----------------------+            ^   |                         |  out_t [tile, H]   |
//                                          +---+ one buffer read, the other written, then swapped
//
// Why one barrier a step suffices. In step i all threads read buffer i % 2 and write buffer (i + 1) % 2, then meet.
// What step i + 1 reads was thus written before the barrier. What it overwrites, buffer i % 2, was last read in step i,
// before the barrier too. No thread can be more than one barrier ahead of another.
//
// Sequences that have ended, or not yet begun, keep their state: a masked select in the owner's registers, so that
// every thread does the same thing in every step. For the forward pass it starts as h0 and ends as h_n. For the
// backward pass it starts as zero, so that the product is zero until a sequence begins, when dh_n takes its place.
//
// The floor. A step is a chain that nothing can shorten: read y from shared memory, the products' latency, act, write
// y, one barrier. Per step each of the SM's four schedulers has to issue H^2 * tile / 4 multiply-adds, 2048 to an mma
// of 16-bit elements, 1024 in TF32, 32 to an FFMA, beside that latency. Everything else has no part in the chain, but
// takes turns with it at the schedulers, and so stands where they have nothing to do: between the issue of the products
// and the use of their sums. There the inputs of the next step become the initial values of its accumulators, those of
// the third step from here are loaded, and addresses are computed.
#pragma once

#include "contract.h"
#include "numbers.cuh"
#include "ptx.cuh"
#include "walk.cuh"

namespace rnnfast {
namespace cuda {

// Inputs are loaded so many steps before they are put into accumulators. Also the number of buffers of the state, so
// that all of them are constants in a loop unrolled by it.
constexpr int kAhead = 2;

// The rows of one thread at one step: a thread owns words of kSlots sequences.
template <class Engine>
struct Place {
  int64_t at[Engine::kSlots];  // the row's first element
  bool alive[Engine::kSlots];  // whether there is such a row
};

template <class Engine>
struct Tile {
  const Walk& walk;
  const Engine& engine;
  int64_t first;               // the tile's first sequence, the longest
  int steps;                   // its length
  bool descending;             // from the last step to the first
  int length[Engine::kSlots];  // of the thread's own sequences, 0 beyond the batch

  __device__ __forceinline__ Tile(const Walk& walk_, const Engine& engine_, bool descending_)
      : walk(walk_), engine(engine_), first(int64_t(blockIdx.x) * Engine::kTile), descending(descending_) {
    steps = int(cuda::length(walk, first));
#pragma unroll
    for (int s = 0; s < Engine::kSlots; ++s) length[s] = int(cuda::length(walk, first + engine.sequence(s)));
  }

  // i-th step of the walk. Clamped, so that looking ahead needs no condition.
  __device__ __forceinline__ int step(int i) const {
    const int t = i < steps ? i : steps - 1;
    return descending ? steps - 1 - t : t;
  }
  __device__ __forceinline__ int64_t row(int i) const { return offset(walk, step(i)); }
  __device__ __forceinline__ bool alive(int i, int slot) const { return i < steps && step(i) < length[slot]; }

  // The thread's rows at the i-th step, whose first row is `row`. That is a load of its own where batches are packed,
  // so the caller asks for it early.
  __device__ __forceinline__ Place<Engine> place(int i, int64_t row) const {
    Place<Engine> place;
#pragma unroll
    for (int s = 0; s < Engine::kSlots; ++s) {
      place.at[s] = (row + first + engine.sequence(s)) * walk.H;
      place.alive[s] = alive(i, s);
    }
    return place;
  }
  // In a matrix [B, H]: the thread's sequences, or those of them whose first step is the i-th.
  __device__ __forceinline__ Place<Engine> batch() const {
    Place<Engine> place;
#pragma unroll
    for (int s = 0; s < Engine::kSlots; ++s) {
      place.at[s] = (first + engine.sequence(s)) * walk.H;
      place.alive[s] = length[s] > 0;
    }
    return place;
  }
  __device__ __forceinline__ Place<Engine> beginning(int i) const {
    Place<Engine> place = batch();
#pragma unroll
    for (int s = 0; s < Engine::kSlots; ++s) place.alive[s] = alive(i, s) && (i == 0 || !alive(i - 1, s));
    return place;
  }
};

template <class Engine, template <class> class Activation>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks) resident_forward(const ForwardArgs args) {
  using Word = typename Engine::Word;
  using Act = Activation<typename Engine::Element>;
  auto& shared = shared_memory<typename Engine::Shared>();
  const Engine engine(args.w_hh, args.walk.H, false);
  const Tile<Engine> tile(args.walk, engine, args.walk.reverse);

  Word y[Engine::kWords];
  engine.load(y, args.h0, tile.batch());
  engine.publish(shared, 0, y);

  Word pre[kAhead][Engine::kWords];  // step i is in i % kAhead
  float values[Engine::kValues];     // pre of the step to come
  engine.load(pre[0], args.pre, tile.place(0, tile.row(0)));
  engine.unpack(values, pre[0]);
#pragma unroll
  for (int i = 1; i <= kAhead; ++i) engine.load(pre[i % kAhead], args.pre, tile.place(i, tile.row(i)));
  int64_t row = tile.row(0), row_ahead = tile.row(kAhead + 1);
  ptx::sync_block();

  for (int begin = 0; begin < tile.steps; begin += kAhead) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = begin + k;
      if (i >= tile.steps) break;
      typename Engine::Sum sum;
      engine.begin(sum, values);
      engine.multiply(sum, shared, k);

      // While the products are under way.
      const Place<Engine> here = tile.place(i, row), ahead = tile.place(i + kAhead + 1, row_ahead);
      row = tile.row(i + 1);
      row_ahead = tile.row(i + kAhead + 2);
      float next[Engine::kValues];
      engine.unpack(next, pre[1 - k]);
      engine.load(pre[1 - k], args.pre, ahead);

      engine.finish(values, sum);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) values[v] = Act::value(values[v]);
      Word result[Engine::kWords];
      engine.pack(result, values);
      engine.update(y, result, here);
      engine.publish(shared, 1 - k, y);
      engine.store(y, args.out, here);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) values[v] = next[v];
      ptx::sync_block();
    }
  }
  engine.store(y, args.h_n, tile.batch());
}

template <class Engine>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks) resident_backward(const BackwardArgs args) {
  using Word = typename Engine::Word;
  auto& shared = shared_memory<typename Engine::Shared>();
  const Engine engine(args.w_hh, args.walk.H, true);
  const Tile<Engine> tile(args.walk, engine, !args.walk.reverse);

  Word y[Engine::kWords] = {};
  engine.publish(shared, 0, y);

  Word dout[kAhead][Engine::kWords] = {}, out[kAhead][Engine::kWords];  // step i is in i % kAhead
  Word h[Engine::kWords];                                               // out and
  float values[Engine::kValues];                                        // dout of the step to come
  {
    const Place<Engine> here = tile.place(0, tile.row(0));
    if (args.dout) engine.load(dout[0], args.dout, here);
    engine.unpack(values, dout[0]);
    engine.load(h, args.out, here);
  }
#pragma unroll
  for (int i = 1; i <= kAhead; ++i) {
    const Place<Engine> ahead = tile.place(i, tile.row(i));
    if (args.dout) engine.load(dout[i % kAhead], args.dout, ahead);
    engine.load(out[i % kAhead], args.out, ahead);
  }
  int64_t row = tile.row(0), row_ahead = tile.row(kAhead + 1);
  ptx::sync_block();

  // Walking down, sequences begin one after the other, the tile's last and shortest as the last one; walking up, all of
  // them at once.
  const int64_t b_last = min(tile.first + Engine::kTile, args.walk.B) - 1;
  const int all_begun = tile.descending ? tile.steps - int(length(args.walk, b_last)) : 0;
  for (int begin = 0; begin < tile.steps; begin += kAhead) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = begin + k;
      if (i >= tile.steps) break;
      typename Engine::Sum sum;
      engine.begin(sum, values);
      engine.multiply(sum, shared, k);

      // While the products are under way.
      const Place<Engine> here = tile.place(i, row), ahead = tile.place(i + kAhead + 1, row_ahead);
      row = tile.row(i + 1);
      row_ahead = tile.row(i + kAhead + 2);
      float derivative[Engine::kValues], next[Engine::kValues];
      engine.unpack(derivative, h);
      engine.unpack(next, dout[1 - k]);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) derivative[v] = derivative_of(args.activation, derivative[v]);
#pragma unroll
      for (int w = 0; w < Engine::kWords; ++w) h[w] = out[1 - k][w];
      if (args.dout) engine.load(dout[1 - k], args.dout, ahead);
      engine.load(out[1 - k], args.out, ahead);

      engine.finish(values, sum);
      if (args.dh_n && i <= all_begun) {  // the same for the whole block
        Word last[Engine::kWords];
        float start[Engine::kValues];
        engine.load(last, args.dh_n, tile.beginning(i));
        engine.unpack(start, last);
#pragma unroll
        for (int v = 0; v < Engine::kValues; ++v) values[v] += start[v];
      }
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) values[v] *= derivative[v];
      Word result[Engine::kWords];
      engine.pack(result, values);
      engine.update(y, result, here);
      engine.publish(shared, 1 - k, y);
      engine.store(y, args.dpre, here);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) values[v] = next[v];
      ptx::sync_block();
    }
  }
#pragma unroll
  for (int v = 0; v < Engine::kValues; ++v) values[v] = 0.0f;
  typename Engine::Sum sum;
  engine.begin(sum, values);
  engine.multiply(sum, shared, tile.steps % kAhead);
  engine.finish(values, sum);
  engine.pack(y, values);
  engine.store(y, args.dh0, tile.batch());
}

}  // namespace cuda
}  // namespace rnnfast
