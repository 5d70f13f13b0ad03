// One layer in one direction: the recurrence and the products around it.
//
//   forward     pre = x W_ih^T + b_ih + b_hh, then the recurrence turns pre into h in place
//   backward    dpre from the recurrence, then
//               dx = dpre W_ih      dW_ih = dpre^T x      dW_hh = dpre^T h_prev      db = sum dpre
//
// The steps are taken in chunks (ChunkCursor), of which there may be one. No bit depends on their size.
//
// The input projection is a pass of its own over out. Computing it within the recurrence instead was tried for I = 28
// and brought nothing (T = 35, B = 32, H = 256, two threads of Zen 4).
#pragma once

#include "../product/gemm.h"
#include "../product/weight_gradient.h"
#include "recurrence.h"
#include "step.h"

namespace rnnfast {
namespace RNNFAST_ISA {

// base + offset, or null if `base` is.
template <class S>
S* part(void* base, int64_t offset) {
  return base ? static_cast<S*>(base) + offset : nullptr;
}
template <class S>
const S* part(const void* base, int64_t offset) {
  return base ? static_cast<const S*>(base) + offset : nullptr;
}

// What both passes read of layer `l` in direction `d` of a stack.
template <class S>
struct Layer {
  Sequences sequences;
  int64_t I, H, R;
  int64_t ld;       // D * H: from one row of out, or of its gradient, to the next
  int64_t state;    // where its rows of h0, h_n and their gradients begin
  int weights;      // where its weights begin
  const S* x;       // [R, I]
  const S* h0;      // [B, H], or null for zeros
  const S* w_ih;    // [H, I]
  const S* w_hh;    // [H, H]
  const S* b_ih;    // [H], or null
  const S* b_hh;    // [H], or null
  int64_t columns;  // where its columns of out begin

  Layer(const Stack& stack, const void* hidden, int64_t rows, int l, int d)
      : sequences{stack.T, stack.B, stack.H, stack.batch_sizes, stack.directions == 2 ? d == 1 : stack.reverse},
        I(l ? stack.directions * stack.H : stack.I),
        H(stack.H),
        R(rows),
        ld(stack.directions * stack.H),
        state((l * stack.directions + d) * stack.B * stack.H),
        weights((l * stack.directions + d) * (stack.biases ? 4 : 2)),
        x(l ? part<S>(hidden, (l - 1) * R * I) : part<S>(stack.x, 0)),
        h0(part<S>(stack.h0, state)),
        w_ih(part<S>(stack.weights[weights], 0)),
        w_hh(part<S>(stack.weights[weights + 1], 0)),
        b_ih(stack.biases ? part<S>(stack.weights[weights + 2], 0) : nullptr),
        b_hh(stack.biases ? part<S>(stack.weights[weights + 3], 0) : nullptr),
        columns(d * stack.H) {}
};

// The most rows that a chunk of at least `chunk_rows` may have.
template <class S>
int64_t most_rows(const Layer<S>& layer, int64_t chunk_rows) {
  return chunk_rows < layer.R - layer.sequences.B ? chunk_rows + layer.sequences.B : layer.R;
}

template <class S, class Act>
class LayerForward {
 public:
  static void* operator new(size_t, void* place) { return place; }

  LayerForward(const Layer<S>& layer,
               S* out,  // [R, H], rows layer.ld apart
               S* h_n,  // [B, H], or null
               int64_t chunk_rows, int threads)
      : layer_(layer),
        input_({layer.w_ih, true, layer.H, layer.I, layer.b_ih, layer.b_hh}, most_rows(layer, chunk_rows),
               chunk_rows < layer.R, threads),
        op_{layer.H, layer.h0, layer.w_hh, out, layer.ld, h_n},
        state_(layer.sequences, op_.kBackward, op_.w_hh, threads) {}

  explicit operator bool() const { return input_ && state_; }

  // Packs the weights, which the first chunk would do otherwise; returns nonzero if there is no memory for scratch.
  int prepare() {
    input_.prepare();
    return run_steps(layer_.sequences, op_, state_, 0);
  }

  // Takes the chunk; returns nonzero if there is no memory for scratch.
  int advance(const ChunkCursor& chunk) {
    const Range rows = chunk.rows();
    if (rows.size() > 0 && layer_.H > 0)
      input_.multiply(part<S>(layer_.x, rows.begin * layer_.I), rows.size(), op_.out + rows.begin * layer_.ld,
                      layer_.ld, false);
    // The last chunk takes the step after the last one, too, in which the remaining sequences leave (recurrence.h).
    return run_steps(layer_.sequences, op_, state_, chunk.count() + chunk.last());
  }

 private:
  const Layer<S> layer_;
  Gemm<S> input_;
  const ForwardRecurrence<S, Act> op_;
  RecurrenceState<S> state_;
};

// A layer in fused steps. `zeros` [H] is the initial state of every sequence if there is no h0.
template <class S, class Act>
int forward_stepwise(const Layer<S>& layer, S* out, S* h_n, const S* zeros, int threads) {
  const Sequences& sequences = layer.sequences;
  const S* h = layer.h0 ? layer.h0 : zeros;
  int64_t h_ld = layer.h0 ? layer.H : 0;
  for (int64_t i = 0; i < sequences.T; ++i) {
    const int64_t row = (sequences.reverse ? sequences.T - 1 - i : i) * sequences.B;
    S* to = out + row * layer.ld;
    step<S, Act>({sequences.B, layer.I, layer.H, layer.x + row * layer.I, h, layer.w_ih, layer.w_hh, layer.b_ih,
                  layer.b_hh, to, h_ld, layer.ld},
                 threads);
    h = to;
    h_ld = layer.ld;
  }
  for (int64_t b = 0; h_n && layer.H > 0 && b < sequences.B; ++b)
    memcpy(h_n + b * layer.H, h + b * h_ld, size_t(layer.H) * sizeof(S));
  return 0;
}

// How much of dpre is computed before it is used. A long sequence is taken in passes, each of them the recurrence over
// some steps and then these steps' part of the gradients, so that scratch memory does not grow with T: training at T =
// 1000, B = 32, H = 256 takes 25% of the memory that torch takes (Zen 4, live blocks). Passes of 1 MiB, which stay in
// the second cache level, took 1.1 to 1.2 times as long.
constexpr int64_t kPassBytes = 4 * 1024 * 1024;
constexpr int64_t kPassRows = 2048;

template <class S>
int64_t rows_of_pass(int64_t R, int64_t H) {
  const int64_t fitting = H > 0 ? kPassBytes / (H * int64_t(sizeof(S))) : 0;
  const int64_t passes = R / (fitting > kPassRows ? fitting : kPassRows);
  return passes > 1 ? (R + passes - 1) / passes : R;  // a pass ends with the step that reaches it
}

template <class S>
struct LayerGradients {
  S* dx;     // [R, I], or null
  S* dh0;    // [B, H], or null
  S* dw_ih;  // [H, I], or null
  S* dw_hh;  // [H, H], or null
  S* db_ih;  // [H], or null
  S* db_hh;  // [H], or null: the same values
};

template <class S, class Act>
class LayerBackward {
 public:
  static void* operator new(size_t, void* place) { return place; }

  LayerBackward(const Layer<S>& layer, const LayerGradients<S>& gradients,
                const S* out,   // [R, H], rows layer.ld apart, as those of dout
                const S* dout,  // [R, H], or null for zeros
                const S* dh_n,  // [B, H], or null for zeros
                int64_t pass_rows, int64_t chunk_rows, int threads)
      : layer_(layer),
        to_(gradients),
        threads_(threads),
        dpre_(most_rows(layer, pass_rows) * layer.H),
        before_(to_.dw_hh ? layer.R : 0),
        zeros_(to_.dw_hh && !layer.h0 ? layer.H : 0),
        input_({layer.w_ih, false, to_.dx ? layer.I : 0, layer.H}, most_rows(layer, chunk_rows), chunk_rows < layer.R,
               threads),
        op_{layer.H, dout, dh_n, layer.w_hh, out, layer.ld, to_.dh0, dpre_.get(), 0},
        state_(layer.sequences, op_.kBackward, op_.w_hh, threads),
        wanted_(to_.dw_ih || to_.dw_hh || db()),
        weights_(to_.dw_ih, to_.dw_hh, db(), layer.I, layer.H, layer.R, pass_rows) {
    if (!*this) return;
    if (to_.dw_hh) previous_rows(layer.sequences, before_.get());
    if (to_.dw_hh && !layer.h0) memset(zeros_.get(), 0, size_t(layer.H) * sizeof(S));
  }

  explicit operator bool() const { return dpre_ && before_ && zeros_ && input_ && state_ && weights_; }

  // Packs the weights, which the first chunk would do otherwise; returns nonzero if there is no memory for scratch.
  int prepare() {
    input_.prepare();
    return run_steps(layer_.sequences, op_, state_, 0);
  }

  // Takes the recurrence over the chunk; returns nonzero if there is no memory for scratch.
  int advance(const ChunkCursor& chunk) {
    op_.first = chunk.pass().begin;
    return run_steps(layer_.sequences, op_, state_, chunk.count() + chunk.last());
  }

  // Writes, or adds to, rows of dx that belong to the last chunk.
  void input_gradient(Range rows, bool add) {
    input_.multiply(dpre_.get() + (rows.begin - op_.first) * layer_.H, rows.size(), to_.dx + rows.begin * layer_.I,
                    layer_.I, add);
  }

  // Adds the rows of a pass to the gradients of the weights; returns nonzero if there is no memory for scratch.
  int weight_gradients(Range pass) {
    if (!wanted_) return 0;
    const S* h0 = layer_.h0 ? layer_.h0 : zeros_.get();
    return weights_.add(
        dpre_.get(), {layer_.I, part<S>(layer_.x, pass.begin * layer_.I), layer_.I},
        {layer_.H, op_.out, layer_.ld, before_.get() + (to_.dw_hh ? pass.begin : 0), h0, layer_.h0 ? layer_.H : 0},
        pass.size(), threads_);
  }

  void finish() const {
    if (wanted_) weights_.finish(threads_);
    if (to_.db_ih && to_.db_hh && layer_.H > 0) memcpy(to_.db_hh, to_.db_ih, size_t(layer_.H) * sizeof(S));
  }

 private:
  S* db() const { return to_.db_ih ? to_.db_ih : to_.db_hh; }

  const Layer<S> layer_;
  const LayerGradients<S> to_;
  const int threads_;
  const Scratch<S> dpre_;          // the rows of a pass
  const Scratch<int64_t> before_;  // where each row's previous state is
  const Scratch<S> zeros_;         // the initial state of every sequence if there is no h0
  Gemm<S> input_;
  BackwardRecurrence<S, Act> op_;
  RecurrenceState<S> state_;
  const bool wanted_;
  WeightGradients<S> weights_;
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
