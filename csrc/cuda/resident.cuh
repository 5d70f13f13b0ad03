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
// of 16-bit elements, 1024 in TF32, 32 to an FFMA, beside that latency. Everything else (the inputs of later steps,
// outputs, addresses) has no part in the chain: the inputs are loaded two steps ahead and are the accumulators' initial
// values.
#pragma once

#include "contract.h"
#include "numbers.cuh"
#include "ptx.cuh"
#include "walk.cuh"

namespace rnnfast {
namespace cuda {

// How many steps ahead the inputs are loaded; also the number of buffers of the state, so that both are known constants
// in a loop unrolled by it.
constexpr int kAhead = 2;

// The rows of one thread: a thread owns words of kSlots sequences, word i belonging to slot Engine::slot(i).
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

  // The thread's words of `rows` rows beginning at `row`; zeros where a sequence has no row, or the state no element.
  using Word = typename Engine::Word;
  __device__ __forceinline__ void load_step(Word (&words)[Engine::kWords], const void* matrix, int64_t row,
                                            int i) const {
#pragma unroll
    for (int w = 0; w < Engine::kWords; ++w)
      words[w] = engine.load(matrix, row + first + engine.sequence(Engine::slot(w)), w, alive(i, Engine::slot(w)));
  }
  __device__ __forceinline__ void store_step(const Word (&words)[Engine::kWords], void* matrix, int64_t row,
                                             int i) const {
#pragma unroll
    for (int w = 0; w < Engine::kWords; ++w)
      engine.store(words[w], matrix, row + first + engine.sequence(Engine::slot(w)), w, alive(i, Engine::slot(w)));
  }
  // The same of a matrix [B, H]; `_beginning` leaves only the sequences whose first step is the i-th.
  __device__ __forceinline__ void load_beginning(Word (&words)[Engine::kWords], const void* matrix, int i) const {
#pragma unroll
    for (int w = 0; w < Engine::kWords; ++w) {
      const int slot = Engine::slot(w);
      const bool begins = alive(i, slot) && (i == 0 || !alive(i - 1, slot));
      words[w] = engine.load(matrix, first + engine.sequence(slot), w, begins);
    }
  }
  __device__ __forceinline__ void load_batch(Word (&words)[Engine::kWords], const void* matrix) const {
#pragma unroll
    for (int w = 0; w < Engine::kWords; ++w) {
      const int64_t b = first + engine.sequence(Engine::slot(w));
      words[w] = engine.load(matrix, b, w, b < walk.B);
    }
  }
  __device__ __forceinline__ void store_batch(const Word (&words)[Engine::kWords], void* matrix) const {
#pragma unroll
    for (int w = 0; w < Engine::kWords; ++w) {
      const int64_t b = first + engine.sequence(Engine::slot(w));
      engine.store(words[w], matrix, b, w, b < walk.B);
    }
  }
  // Replaces the words of sequences that take part in step i.
  __device__ __forceinline__ void update(Word (&words)[Engine::kWords], const Word (&by)[Engine::kWords], int i) const {
#pragma unroll
    for (int w = 0; w < Engine::kWords; ++w) words[w] = engine.select(by[w], words[w], w, alive(i, Engine::slot(w)));
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
  tile.load_batch(y, args.h0);
  engine.clear(shared);
  ptx::sync_block();
  engine.publish(shared, 0, y);

  Word pre[kAhead][Engine::kWords];  // of steps i .. i + kAhead - 1
  int64_t row[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    row[k] = tile.row(k);
    tile.load_step(pre[k], args.pre, row[k], k);
  }
  int64_t row_ahead = tile.row(kAhead);  // its load, too, gets a step of time
  ptx::sync_block();

  for (int begin = 0; begin < tile.steps; begin += kAhead) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = begin + k;
      if (i >= tile.steps) break;
      float values[Engine::kValues];
      engine.unpack(values, pre[k]);
      tile.load_step(pre[k], args.pre, row_ahead, i + kAhead);
      engine.add_product(values, shared, k);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) values[v] = Act::value(values[v]);
      Word next[Engine::kWords];
      engine.pack(next, values);
      tile.update(y, next, i);
      engine.publish(shared, 1 - k, y);
      tile.store_step(y, args.out, row[k], i);
      row[k] = row_ahead;
      row_ahead = tile.row(i + kAhead + 1);
      ptx::sync_block();
    }
  }
  tile.store_batch(y, args.h_n);
}

template <class Engine>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks) resident_backward(const BackwardArgs args) {
  using Word = typename Engine::Word;
  auto& shared = shared_memory<typename Engine::Shared>();
  const Engine engine(args.w_hh, args.walk.H, true);
  const Tile<Engine> tile(args.walk, engine, !args.walk.reverse);

  Word y[Engine::kWords] = {};
  engine.clear(shared);

  Word dout[kAhead][Engine::kWords] = {};
  Word h[kAhead][Engine::kWords];
  int64_t row[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    row[k] = tile.row(k);
    if (args.dout) tile.load_step(dout[k], args.dout, row[k], k);
    tile.load_step(h[k], args.out, row[k], k);
  }
  int64_t row_ahead = tile.row(kAhead);
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
      float values[Engine::kValues], derivative[Engine::kValues];
      engine.unpack(values, dout[k]);
      engine.unpack(derivative, h[k]);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) derivative[v] = derivative_of(args.activation, derivative[v]);
      if (args.dout) tile.load_step(dout[k], args.dout, row_ahead, i + kAhead);
      tile.load_step(h[k], args.out, row_ahead, i + kAhead);
      if (args.dh_n && i <= all_begun) {  // the same for the whole block
        Word now[Engine::kWords];
        tile.load_beginning(now, args.dh_n, i);
        float start[Engine::kValues];
        engine.unpack(start, now);
#pragma unroll
        for (int v = 0; v < Engine::kValues; ++v) values[v] += start[v];
      }
      engine.add_product(values, shared, k);
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) values[v] *= derivative[v];
      Word next[Engine::kWords];
      engine.pack(next, values);
      tile.update(y, next, i);
      engine.publish(shared, 1 - k, y);
      tile.store_step(y, args.dpre, row[k], i);
      row[k] = row_ahead;
      row_ahead = tile.row(i + kAhead + 1);
      ptx::sync_block();
    }
  }
  float values[Engine::kValues] = {};
  engine.add_product(values, shared, tile.steps % kAhead);
  engine.pack(y, values);
  tile.store_batch(y, args.dh0);
}

}  // namespace cuda
}  // namespace rnnfast
