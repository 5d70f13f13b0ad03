// The recurrence of a whole sequence in one block, with W_hh in the block's registers.
//
//   forward    h_t = act(pre_t + W_hh h_{t-1})                         for every t, and h_n
//   backward   g_t = (dout_t + W_hh^T g_{t+1}) act'(h_t),  g = dpre    for every t backwards, and dh0 = W_hh^T g_0
//
// Who holds what. A block has a few sequences (its tile) and walks them from their first step to their last; it never
// talks to another block. Its threads hold all of W_hh, padded with zeros, in registers from before the first step
// until after the last: an Engine (resident_matrix.cuh, resident_fma.cuh) says which thread holds which part of it, and
// which elements of the tile's state [tile, H], its values, it owns.
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
// step i, before the barrier too. No thread can be more than one barrier ahead of another. In the same way the ring: a
// tile that step i reads has arrived before the barrier of step i - 1, for which each thread waits for its own copies;
// and what step i copies goes to the place of tile i - 1, which nobody reads after that barrier.
//
// Why inputs go through the ring and not from global memory to registers: a thread that waits for a load waits for all
// loads that the compiler has given the same one of six scoreboards, so for the youngest. Copies to shared memory are
// waited for in their order (`copy_wait`). On an H100, loaded to registers three steps ahead, a step of H = 64 in
// bfloat16 took 0.32 us.
//
// Sequences that have ended, or not yet begun, keep their state: a select in the owner's registers, so that every
// thread does the same thing in every step. For the forward pass it starts as h0 and ends as h_n. For the backward
// pass it starts as zero, so that the product is zero until a sequence begins, when dh_n takes its place.
//
// The floor. A step is a chain that nothing can shorten: read y from shared memory, the products' latency, act, write
// y, one barrier. Per step each of the SM's four schedulers has to issue H^2 * tile / 4 multiply-adds, 2048 to an mma
// of 16-bit elements, 1024 in TF32, 32 to an FFMA, beside that latency. Everything else has no part in the chain, but
// takes turns with it at the schedulers, in order, and so stands where they have nothing to do: between the issue of
// the products and the use of their sums.
#pragma once

#include "contract.h"
#include "numbers.cuh"
#include "ptx.cuh"
#include "resident_rows.cuh"
#include "walk.cuh"

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
  typename Engine::Rest rest;  // of W_hh: what registers have no room for
  Ring<Engine> pre;
};

template <class Engine>
struct BackwardShared {
  typename Engine::State y[2];
  typename Engine::Rest rest;
  Ring<Engine> dout, out;
};

// Of each value the sequence of the tile and the unit are the engine's. [B, H] matrices, once: no matter how.
template <class Engine>
__device__ __forceinline__ void gather(const Engine& engine, float (&values)[Engine::kValues], const void* matrix,
                                       int64_t first, const Walk& walk) {
#pragma unroll
  for (int v = 0; v < Engine::kValues; ++v) {
    const int64_t b = first + engine.sequence(v), unit = engine.unit(v);
    const bool inside = b < walk.B && unit < walk.H;
    values[v] = inside ? to_float(static_cast<const typename Engine::Element*>(matrix)[b * walk.H + unit]) : 0.0f;
  }
}
template <class Engine>
__device__ __forceinline__ void scatter(const Engine& engine, const float (&values)[Engine::kValues], void* matrix,
                                        int64_t first, const Walk& walk) {
#pragma unroll
  for (int v = 0; v < Engine::kValues; ++v) {
    using T = typename Engine::Element;
    const int64_t b = first + engine.sequence(v), unit = engine.unit(v);
    if (b < walk.B && unit < walk.H) static_cast<T*>(matrix)[b * walk.H + unit] = from_float<T>(values[v]);
  }
}

template <class Engine, template <class> class Activation, bool kPacked>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks)
    resident_forward(const ResidentArgs<ForwardArgs> all) {
  using Act = Activation<typename Engine::Element>;
  using Ring = cuda::Ring<Engine>;
  const ForwardArgs& args = all.args;
  auto& shared = shared_memory<ForwardShared<Engine>>();
  const Tile<kPacked> tile(args.walk, int64_t(blockIdx.x) * Engine::kTile, args.walk.reverse);
  const Engine engine(shared.rest, args.w_hh, args.walk.H, all.stride, tile, false);

  Copier<Engine, kPacked> copy(tile, all.stride);
  for (int i = 0; i < Ring::kAhead; ++i) {
    copy.to(shared.pre, args.pre);
    copy.next();
  }
  float values[Engine::kValues];
  typename Engine::Words y;
  gather(engine, values, args.h0, tile.first, args.walk);
  engine.round(y, values);
  engine.publish(shared.y[0], y);
  ptx::copy_wait<Ring::kPending>();
  ptx::sync_block();
  engine.read(values, shared.pre.at[0]);

  Rows<kPacked> rows(tile, engine.stored());
  uint32_t row = 0;  // where the previous step's results belong
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
  scatter(engine, values, args.h_n, tile.first, args.walk);
}

template <class Engine, bool kPacked>
__global__ void __launch_bounds__(Engine::kThreads, Engine::kBlocks)
    resident_backward(const ResidentArgs<BackwardArgs> all) {
  using Ring = cuda::Ring<Engine>;
  const BackwardArgs& args = all.args;
  auto& shared = shared_memory<BackwardShared<Engine>>();
  const Tile<kPacked> tile(args.walk, int64_t(blockIdx.x) * Engine::kTile, !args.walk.reverse);
  const Engine engine(shared.rest, args.w_hh, args.walk.H, all.stride, tile, true);

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

  // Walking down, sequences begin one after the other, the tile's last and shortest as the last one; walking up, all of
  // them at once.
  const int64_t b_last = min(tile.first + Engine::kTile, args.walk.B) - 1;
  const int all_begun = tile.descending ? tile.steps - Tile<kPacked>::length(args.walk, b_last) : 0;
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
    if (args.dh_n && i <= all_begun) {  // the same for the whole block
#pragma unroll
      for (int v = 0; v < Engine::kValues; ++v) {
        const int64_t b = tile.first + engine.sequence(v), unit = engine.unit(v);
        const auto* last = static_cast<const typename Engine::Element*>(args.dh_n) + b * args.walk.H + unit;
        if (engine.begins(v, i) && unit < args.walk.H) values[v] += to_float(*last);
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
  scatter(engine, values, args.dh0, tile.first, args.walk);
}

}  // namespace cuda
}  // namespace rnnfast
