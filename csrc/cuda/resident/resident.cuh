// The recurrence of a whole sequence in one block, with W_hh in the block's registers.
//
//   forward    h_t = act(pre_t + W_hh h_{t-1})                         for every t, and h_n
//   backward   g_t = (dout_t + W_hh^T g_{t+1}) act'(h_t),  g = dpre    for every t backwards, and dh0 = W_hh^T g_0
//
// Who holds what. A block has a few sequences (its tile) and takes them from their first step to their last, without
// communication with other blocks. Its threads hold all of W_hh, padded with zeros, in registers from before the first
// step until after the last. An Engine (matrix.cuh, fma.cuh) says which part of W_hh a thread holds
// and which elements of the tile's state [tile, H] it owns, its values.
//
//      registers, all steps           shared memory                             global memory
//    +----------------------+       +---------------------+                   +--------------------+
//    |  W_hh  [H, H]        |   x   | y, the state, twice |                   |                    |
//    |  a slice per warp    |       +---------------------+  store, a step    |  out_t [tile, H]   |
//    +----------------------+          read | ^ written     later             +--------------------+
//              |                            +-+
//              +--> + pre_t, act --------> state              copied, several
//                       ^           +---------------------+  steps ahead      +--------------------+
//                       +---------- | ring of [tile, H]   | <---------------- |  pre_t [tile, H]   |
//                                   +---------------------+                   +--------------------+
//
// Why one barrier a step suffices. In step i all threads read buffer i % 2 of y and write buffer (i + 1) % 2, then
// meet. What step i + 1 reads was thus written before the barrier. What it overwrites, buffer i % 2, was last read in
// step i, before the barrier too. No thread can be more than one barrier ahead of another. The same holds for the ring:
// a tile that step i reads has arrived before the barrier of step i - 1, for which each thread waits for its own
// copies; and what step i copies replaces tile i - 1, which nobody reads after that barrier.
//
// Why inputs go through the ring and not from global memory to registers. A thread that waits for a load waits for all
// loads that the compiler has assigned to the same one of six scoreboards, so for the youngest of them. Copies to
// shared memory are waited for in their order (`copy_wait`). With inputs loaded to registers three steps ahead, a step
// of H = 64 in bfloat16 took 0.32 us on an H100; it takes 0.18.
//
// Sequences that have ended, or not yet begun, keep their state: a select in the owner's registers, so that every
// thread does the same thing in every step. For the forward pass it starts as h0 and ends as h_n. For the backward
// pass it starts as zero, so that the product is zero until a sequence begins, when dh_n takes its place.
//
// The floor. A step is a chain of dependent operations: read y from shared memory, the products' latency, act, write y,
// one barrier. Per step each of the SM's four schedulers has to issue H^2 * tile / 4 multiply-adds, 2048 to an mma of
// 16-bit elements, 1024 in TF32, 32 to an FFMA, beside that latency. Everything else is not part of the chain, but is
// issued by the same schedulers in order, and so is placed where they are idle: between the issue of the products and
// the use of their sums.
//
// Measured on an H100, call included, in bfloat16 at B = 16: 0.18 us a step at H = 64 and 0.53 at H = 256. The parts of
// a step add up to half of that (`python -m rnnfast.inspect cuda.resident_forward`). The rest seems to be the memory
// unit of the multiprocessor, through which every warp reads the state at every step. Not tried: adding up the bias
// gradients in the backward kernel. They are a reduction of torch's, which reads dpre again.
#pragma once

#include "../contract.h"
#include "../numbers.cuh"
#include "../ptx.cuh"
#include "../sequences.cuh"
#include "rows.cuh"

namespace rnnfast {
namespace cuda {

// Matrices [R, H] have rows of `stride` elements, a multiple of 16 bytes; the elements after H are 0.
template <class DirectionArgs>
struct ResidentArgs {
  DirectionArgs args;
  uint32_t stride;
};

template <class Engine>
struct ForwardShared {
  typename Engine::State y[2];
  typename Engine::Rest rest;  // the part of W_hh that is not in registers
  Ring<Engine> pre;
};

template <class Engine>
struct BackwardShared {
  typename Engine::State y[2];
  typename Engine::Rest rest;
  Ring<Engine> dout, out;
};

// Loads a thread's values of a matrix [B, H]; the engine knows the sequence and the unit of each. It happens once a
// call, so its speed does not matter.
template <class Engine>
__device__ __forceinline__ void gather(const Engine& engine, float (&values)[Engine::kValues], const void* matrix,
                                       int64_t first, const Sequences& sequences) {
#pragma unroll
  for (int v = 0; v < Engine::kValues; ++v) {
    const int64_t b = first + engine.sequence(v), unit = engine.unit(v);
    const bool inside = b < sequences.B && unit < sequences.H;
    values[v] = inside ? to_float(static_cast<const typename Engine::Element*>(matrix)[b * sequences.H + unit]) : 0.0f;
  }
}
template <class Engine>
__device__ __forceinline__ void scatter(const Engine& engine, const float (&values)[Engine::kValues], void* matrix,
                                        int64_t first, const Sequences& sequences) {
#pragma unroll
  for (int v = 0; v < Engine::kValues; ++v) {
    using T = typename Engine::Element;
    const int64_t b = first + engine.sequence(v), unit = engine.unit(v);
    if (b < sequences.B && unit < sequences.H)
      static_cast<T*>(matrix)[b * sequences.H + unit] = from_float<T>(values[v]);
  }
}

template <class Engine, template <class> class Activation, bool kPacked>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks)
    resident_forward(const ResidentArgs<ForwardArgs> all) {
  using Act = Activation<typename Engine::Element>;
  using Ring = cuda::Ring<Engine>;
  const ForwardArgs& args = all.args;
  auto& shared = shared_memory<ForwardShared<Engine>>();
  const Tile<kPacked> tile(args.sequences, int64_t(blockIdx.x) * Engine::kTile, args.sequences.reverse);
  const Engine engine(shared.rest, args.w_hh, args.sequences.H, all.stride, tile, false);

  Copier<Engine, kPacked> copy(tile, all.stride);
  for (int i = 0; i < Ring::kAhead; ++i) {
    copy.to(shared.pre, args.pre);
    copy.next();
  }
  float values[Engine::kValues];
  typename Engine::Words y;
  gather(engine, values, args.h0, tile.first, args.sequences);
  engine.round(y, values);
  engine.publish(shared.y[0], y);
  ptx::copy_wait<Ring::kPending>();
  ptx::sync_block();
  engine.read(values, shared.pre.at[0]);

  Rows<kPacked> rows(tile, engine.stored());
  uint32_t row = 0;  // the row of the previous step's results
  const auto step = [&](int i, int k) {
    typename Engine::Sum sum;
    engine.begin(sum, values);
    engine.multiply(sum, shared.y[k], shared.rest);

    // While the products are under way.
    float next[Engine::kValues];
    engine.read(next, shared.pre.at[(i + 1) % Ring::kTiles]);
    engine.store(args.out, row, i - 1, shared.y[k], y);
    row = rows.next();
    copy.to(shared.pre, args.pre);
    copy.next();

    engine.finish(values, sum);
#pragma unroll
    for (int v = 0; v < Engine::kValues; ++v) values[v] = Act::value(values[v]);
    engine.template update<kPacked>(y, values, i);
    engine.publish(shared.y[1 - k], y);
#pragma unroll
    for (int v = 0; v < Engine::kValues; ++v) values[v] = next[v];
    ptx::copy_wait<Ring::kPending>();
    ptx::sync_block();
  };
  for (int i = 0; i < tile.steps; ++i) {
    step(i, 0);
    if (++i < tile.steps) step(i, 1);
  }
  engine.store(args.out, row, tile.steps - 1, shared.y[tile.steps % 2], y);
  engine.values(values, y);
  scatter(engine, values, args.h_n, tile.first, args.sequences);
}

template <class Engine, bool kPacked>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks)
    resident_backward(const ResidentArgs<BackwardArgs> all) {
  using Ring = cuda::Ring<Engine>;
  const BackwardArgs& args = all.args;
  auto& shared = shared_memory<BackwardShared<Engine>>();
  const Tile<kPacked> tile(args.sequences, int64_t(blockIdx.x) * Engine::kTile, !args.sequences.reverse);
  const Engine engine(shared.rest, args.w_hh, args.sequences.H, all.stride, tile, true);

  const bool has_dout = args.dout != nullptr;
  const void* const dout = has_dout ? args.dout : args.out;  // an address, where nothing is read
  Copier<Engine, kPacked> copy(tile, all.stride);
  for (int i = 0; i < Ring::kAhead; ++i) {
    copy.to(shared.dout, dout, has_dout);
    copy.to(shared.out, args.out);
    copy.next();
  }
  float values[Engine::kValues] = {};
  typename Engine::Words y;
  engine.round(y, values);
  engine.publish(shared.y[0], y);
  ptx::copy_wait<Ring::kPending>();
  ptx::sync_block();
  engine.read(values, shared.dout.at[0]);

  // In descending order of steps sequences begin one after the other, the tile's last and shortest as the last one. In
  // ascending order all begin at once.
  const int64_t b_last = min(tile.first + Engine::kTile, args.sequences.B) - 1;
  const int all_begun = tile.descending ? tile.steps - Tile<kPacked>::length(args.sequences, b_last) : 0;
  Rows<kPacked> rows(tile, engine.stored());
  uint32_t row = 0;
  const auto step = [&](int i, int k) {
    typename Engine::Sum sum;
    engine.begin(sum, values);
    engine.multiply(sum, shared.y[k], shared.rest);

    // While the products are under way.
    float derivative[Engine::kValues], next[Engine::kValues];
    engine.read(derivative, shared.out.at[i % Ring::kTiles]);
    engine.read(next, shared.dout.at[(i + 1) % Ring::kTiles]);
    engine.store(args.dpre, row, i - 1, shared.y[k], y);
    row = rows.next();
    copy.to(shared.dout, dout, has_dout);
    copy.to(shared.out, args.out);
    copy.next();
#pragma unroll
    for (int v = 0; v < Engine::kValues; ++v) derivative[v] = derivative_of(args.activation, derivative[v]);

    engine.finish(values, sum);
    if (args.dh_n && i <= all_begun) {  // the whole block takes the same branch
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) {
        const int64_t b = tile.first + engine.sequence(v), unit = engine.unit(v);
        const auto* last = static_cast<const typename Engine::Element*>(args.dh_n) + b * args.sequences.H + unit;
        if (engine.begins(v, i) && unit < args.sequences.H) values[v] += to_float(*last);
      }
    }
#pragma unroll
    for (int v = 0; v < Engine::kValues; ++v) values[v] *= derivative[v];
    engine.template update<kPacked>(y, values, i);
    engine.publish(shared.y[1 - k], y);
#pragma unroll
    for (int v = 0; v < Engine::kValues; ++v) values[v] = next[v];
    ptx::copy_wait<Ring::kPending>();
    ptx::sync_block();
  };
  for (int i = 0; i < tile.steps; ++i) {
    step(i, 0);
    if (++i < tile.steps) step(i, 1);
  }
  engine.store(args.dpre, row, tile.steps - 1, shared.y[tile.steps % 2], y);
#pragma unroll
  for (int v = 0; v < Engine::kValues; ++v) values[v] = 0.0f;
  typename Engine::Sum sum;
  engine.begin(sum, values);
  engine.multiply(sum, shared.y[tile.steps % 2], shared.rest);
  engine.finish(values, sum);
  scatter(engine, values, args.dh0, tile.first, args.sequences);
}

}  // namespace cuda
}  // namespace rnnfast
