// One layer in one direction: the recurrence and the products around it.
//
//   forward     pre = x W_ih^T + b_ih + b_hh, then the recurrence turns pre into h in place
//   backward    dpre from the recurrence, then
//               dx = dpre W_ih      dW_ih = dpre^T x      dW_hh = dpre^T h_prev      db = sum dpre
//
// of which h_prev is what the cell multiplies by W_hh, and the gradients of alpha and the noise, where a cell has them.
//
// The steps are taken in chunks (ChunkCursor), of which there may be one. No bit depends on their size.
//
// The input projection is a pass of its own over out. Computing it within the recurrence instead was tried for I = 28
// and brought nothing (T = 35, B = 32, H = 256, two threads of Zen 4).
#pragma once

#include "../product/gemm.h"
#include "../product/weight_gradient.h"
#include "alpha_gradient.h"
#include "cell.h"
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
  CellTerms<S> terms;
  const S* noise;  // [R, H], or null

  Layer(const Stack& stack, const void* hidden, int64_t rows, int l, int d)
      : sequences{stack.T, stack.B, stack.H, stack.batch_sizes, stack.directions == 2 ? d == 1 : stack.reverse},
        I(l ? stack.directions * stack.H : stack.I),
        H(stack.H),
        R(rows),
        ld(stack.directions * stack.H),
        state((l * stack.directions + d) * stack.B * stack.H),
        weights((l * stack.directions + d) * stack.weights_each()),
        x(l ? part<S>(hidden, (l - 1) * R * I) : part<S>(stack.x, 0)),
        h0(part<S>(stack.h0, state)),
        w_ih(part<S>(stack.weights[weights], 0)),
        w_hh(part<S>(stack.weights[weights + 1], 0)),
        b_ih(stack.biases ? part<S>(stack.weights[weights + 2], 0) : nullptr),
        b_hh(stack.biases ? part<S>(stack.weights[weights + 3], 0) : nullptr),
        columns(d * stack.H),
        terms{stack.cell, stack.activation,
              stack.cell != Cell::kElman ? part<S>(stack.weights[weights + stack.alpha_at()], 0) : nullptr,
              stack.resets},
        noise(stack.noise ? part<S>(stack.weights[weights + stack.noise_at()], 0) : nullptr) {}

  // What all layers write to `inner` or another array of that shape, from the columns of this one on.
  template <class P>
  auto* own(P* all, int l) const {
    return part<S>(all, l * R * ld + columns);
  }

  // Rows that stand for the initial states, [start_rows, H], where they are not those of h0 itself: act(h0) of ctrnn,
  // and the state of a sequence that starts from zero. With h0, that one is row B.
  int64_t start_rows() const { return !h0 ? 1 : terms.cell == Cell::kCtrnn || terms.resets ? sequences.B + 1 : 0; }
  void fill_starts(S* rows, bool carried) const {
    using C = Compute<S>;
    for (int64_t b = 0; b < start_rows(); ++b)
      for (int64_t n = 0; n < H; n += kLanes<C>) {
        const int lanes = H - n < kLanes<C> ? int(H - n) : kLanes<C>;
        const Vec<C> state = h0 && b < sequences.B ? load_lanes(h0 + b * H + n, lanes) : Vec<C>{};
        store_lanes(rows + b * H + n, carried ? terms.carried(state) : state, lanes);
      }
  }
};

template <class S, class Act>
ForwardRecurrence<S, Act> forward_recurrence(const Layer<S>& layer, S* out, S* h_n, S* inner, Compute<S>* leak) {
  const Sequences& s = layer.sequences;
  if constexpr (kPlain<Act>)
    return {layer.H, layer.h0, layer.w_hh, out, layer.ld, h_n};
  else
    return {layer.H,
            layer.h0,
            layer.w_hh,
            out,
            layer.ld,
            h_n,
            inner,
            layer.terms,
            layer.noise,
            {leak, Leak<S>::row_length(layer.H)},
            layer.R,
            s.reverse ? layer.R - s.B : 0,
            s.reverse ? -s.B : s.B};
}

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
               S* out,    // [R, H], rows layer.ld apart
               S* h_n,    // [B, H], or null
               S* inner,  // [R, H], rows layer.ld apart, or null
               int64_t chunk_rows, int threads)
      : layer_(layer),
        input_({layer.w_ih, true, layer.H, layer.I, layer.b_ih, layer.b_hh}, most_rows(layer, chunk_rows),
               chunk_rows < layer.R, threads),
        leak_(Leak<S>::size(layer.terms, layer.sequences)),
        op_(forward_recurrence<S, Act>(layer, out, h_n, inner, leak_.get())),
        state_(layer.sequences, op_.kBackward, op_.w_hh, threads) {}

  explicit operator bool() const { return input_ && leak_ && state_; }

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
  const Scratch<Compute<S>> leak_;
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
  S* dx;      // [R, I], or null
  S* dh0;     // [B, H], or null
  S* dw_ih;   // [H, I], or null
  S* dw_hh;   // [H, H], or null
  S* db_ih;   // [H], or null
  S* db_hh;   // [H], or null: the same values
  S* dalpha;  // [H], or null
  S* dnoise;  // [R, H], or null
};

template <class S>
struct OutputGradients {
  const S* dout;    // [R, H], rows D * H apart, or null for zeros
  const S* dh_n;    // [B, H], or null for zeros
  const S* dinner;  // [R, H], rows D * H apart, or null for zeros
};

template <class S, class Act>
BackwardRecurrence<S, Act> backward_recurrence(const Layer<S>& layer, const OutputGradients<S>& from, const S* out,
                                               const S* inner, S* dh0, Compute<S>* leak) {
  if constexpr (kPlain<Act>)
    return {layer.H, from.dout, from.dh_n, layer.w_hh, out, layer.ld, dh0, nullptr, 0};
  else
    return {layer.H, from.dout, from.dh_n, layer.w_hh,  out,         layer.ld, dh0,
            nullptr, 0,         inner,     from.dinner, layer.terms, layer.h0, {leak, Leak<S>::row_length(layer.H)},
            nullptr};
}

template <class S, class Act>
class LayerBackward {
 public:
  static void* operator new(size_t, void* place) { return place; }

  LayerBackward(const Layer<S>& layer, const LayerGradients<S>& gradients, const OutputGradients<S>& from,
                const S* out,    // [R, H], rows layer.ld apart
                const S* inner,  // [R, H], rows layer.ld apart, or null of Elman's cell
                int64_t pass_rows, int64_t chunk_rows, int threads)
      : layer_(layer),
        to_(gradients),
        threads_(threads),
        ctrnn_(layer.terms.cell == Cell::kCtrnn),
        dpre_(to_.dnoise && !ctrnn_ ? 0 : most_rows(layer, pass_rows) * layer.H),
        dstate_(to_.dalpha && !(to_.dnoise && ctrnn_) ? most_rows(layer, pass_rows) * layer.H : 0),
        before_(reads_starts() ? layer.R : 0),
        starts_(reads_starts() ? layer.start_rows() * layer.H : 0),
        state_starts_(to_.dalpha && ctrnn_ ? layer.start_rows() * layer.H : 0),
        leak_(Leak<S>::size(layer.terms, layer.sequences)),
        input_({layer.w_ih, false, to_.dx ? layer.I : 0, layer.H}, most_rows(layer, chunk_rows), chunk_rows < layer.R,
               threads),
        op_(backward_recurrence<S, Act>(layer, from, out, inner, to_.dh0, leak_.get())),
        state_(layer.sequences, op_.kBackward, op_.w_hh, threads),
        wanted_(to_.dw_ih || to_.dw_hh || db()),
        weights_(to_.dw_ih, to_.dw_hh, db(), layer.I, layer.H, layer.R, pass_rows),
        alpha_(to_.dalpha ? 1 : 0) {
    if (!*this) return;
    if (to_.dalpha) {
      const Factor<S> input{layer.w_ih, true, layer.H, layer.I, layer.b_ih, layer.b_hh};
      const Factor<S> recurrent{layer.w_hh, true, layer.H, layer.H};
      fine_ = bool(alpha_.make(to_.dalpha, layer.H, ctrnn_ ? &input : nullptr, ctrnn_ ? &recurrent : nullptr, threads));
    }
    if (!reads_starts()) return;
    previous_rows(layer.sequences, before_.get());
    for (int64_t r = 0; layer.terms.resets && r < layer.R; ++r)
      if (layer.terms.resets[r]) before_.get()[r] = ~layer.sequences.B;
    layer.fill_starts(starts_.get(), true);
    if (to_.dalpha && ctrnn_) layer.fill_starts(state_starts_.get(), false);
  }

  explicit operator bool() const {
    return dpre_ && dstate_ && before_ && starts_ && state_starts_ && leak_ && input_ && state_ && weights_ && alpha_ &&
           fine_;
  }

  // Packs the weights, which the first chunk would do otherwise; returns nonzero if there is no memory for scratch.
  int prepare() {
    input_.prepare();
    return run_steps(layer_.sequences, op_, state_, 0);
  }

  // Takes the recurrence over the chunk; returns nonzero if there is no memory for scratch.
  int advance(const ChunkCursor& chunk) {
    op_.first = chunk.pass().begin;
    op_.dpre = of_pass(dpre_, !ctrnn_);
    if constexpr (!kPlain<Act>) op_.dstate = to_.dalpha || (to_.dnoise && ctrnn_) ? of_pass(dstate_, ctrnn_) : nullptr;
    return run_steps(layer_.sequences, op_, state_, chunk.count() + chunk.last());
  }

  // Writes, or adds to, rows of dx that belong to the last chunk.
  void input_gradient(Range rows, bool add) {
    input_.multiply(op_.dpre + (rows.begin - op_.first) * layer_.H, rows.size(), to_.dx + rows.begin * layer_.I,
                    layer_.I, add);
  }

  // Adds the rows of a pass to the gradients of the weights; returns nonzero if there is no memory for scratch.
  int weight_gradients(Range pass) {
    const GatheredRows<S> x{layer_.I, part<S>(layer_.x, pass.begin * layer_.I), layer_.I};
    const GatheredRows<S> carried = states(pass, op_.out, starts_);
    if constexpr (!kPlain<Act>)
      if (to_.dalpha)
        alpha_[0].add(op_.dstate, op_.inner + pass.begin * layer_.ld, layer_.ld,
                      ctrnn_ ? states(pass, op_.inner, state_starts_) : carried, x.base, layer_.I, carried,
                      pass.size());
    return wanted_ ? weights_.add(op_.dpre, x, carried, pass.size(), threads_) : 0;
  }

  void finish() const {
    if (wanted_) weights_.finish(threads_);
    if (to_.dalpha) alpha_[0].finish();
    if (to_.db_ih && to_.db_hh && layer_.H > 0) memcpy(to_.db_hh, to_.db_ih, size_t(layer_.H) * sizeof(S));
  }

 private:
  S* db() const { return to_.db_ih ? to_.db_ih : to_.db_hh; }

  bool reads_starts() const { return to_.dw_hh || to_.dalpha; }

  // Where the rows of the current pass are in `scratch` or, where that is what `in_noise` says, in dnoise.
  S* of_pass(const Scratch<S>& scratch, bool in_noise) const {
    return to_.dnoise && in_noise ? to_.dnoise + op_.first * layer_.H : scratch.get();
  }

  // The rows of `all` [R, H] that the steps of a pass started from, of which `starts` has the first ones.
  GatheredRows<S> states(Range pass, const S* all, const Scratch<S>& starts) const {
    return {layer_.H,
            all,
            layer_.ld,
            before_.get() + (reads_starts() ? pass.begin : 0),
            layer_.start_rows() ? starts.get() : layer_.h0,
            layer_.h0 ? layer_.H : 0};
  }

  const Layer<S> layer_;
  const LayerGradients<S> to_;
  const int threads_;
  const bool ctrnn_;
  const Scratch<S> dpre_;           // the rows of a pass, if they are not those of dnoise
  const Scratch<S> dstate_;         // the same of the gradient of h or v
  const Scratch<int64_t> before_;   // where each row's previous state is
  const Scratch<S> starts_;         // see Layer::start_rows
  const Scratch<S> state_starts_;   // those of ctrnn's state
  const Scratch<Compute<S>> leak_;  // see Leak
  Gemm<S> input_;
  BackwardRecurrence<S, Act> op_;
  RecurrenceState<S> state_;
  const bool wanted_;
  WeightGradients<S> weights_;
  Several<AlphaGradient<S>> alpha_;
  bool fine_ = true;
};

}  // namespace RNNFAST_ISA
}  // namespace rnnfast
