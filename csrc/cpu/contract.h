// The contract of the CPU kernels: stacks of layers, and what a set of kernels offers. Equations and notation are those
// of
// ../common.h.
//
// Every function returns 0, or nonzero when scratch memory could not be had (nothing useful is written then).
#pragma once

#include <stdint.h>

#include "../common.h"

namespace rnnfast {

// A batch of sequences, and the order in which their steps are taken.
struct Sequences {
  int64_t T, B, H;
  const int64_t* batch_sizes;  // [T], or null: B rows at every step
  bool reverse;
};

// ---- the contract ----------------------------------------------------------------------------------

// L layers in D directions, [l * D + d] in this order wherever both count. A layer reads the outputs of all directions
// of the layer below, side by side: I inputs for the first, D * H for the others.
struct Stack {
  DType dtype;
  Activation activation;
  int64_t T, B, I, H;
  const int64_t* batch_sizes;  // [T], or null
  int layers, directions;      // L, D: 1 or 2
  bool reverse;                // of one direction alone. Of two, the second is reversed.
  bool biases;                 // whether there are b_ih and b_hh
  const void* x;               // [R, I]
  const void* h0;              // [L * D, B, H], or null for zeros
  // For each [l, d]: w_ih [H, I or D * H], w_hh [H, H], b_ih [H] and b_hh [H] if `biases`, alpha [H] of a cell other
  // than Elman's, noise [R, H] if `noise`.
  const void* const* weights;
  Cell cell = Cell::kElman;
  bool noise = false;
  const uint8_t* resets = nullptr;  // [R], or null; of a dense batch alone. Where not zero, a step starts from zero.

  int alpha_at() const { return biases ? 4 : 2; }  // where alpha is among the weights of a layer in a direction
  int noise_at() const { return alpha_at() + (cell != Cell::kElman); }
  int weights_each() const { return noise_at() + noise; }
  // Whether it is Elman's cell as torch has it, which has kernels of its own.
  bool plain() const {
    return cell == Cell::kElman && !noise && !resets &&
           (activation == Activation::kTanh || activation == Activation::kRelu);
  }
};

// `stepwise` (dense batches and plain stacks only) allows to run every layer as fused steps, which read the weights in
// place and add in an order of their own; the shortest sequences are faster that way.
struct StackArgs {
  Stack stack;
  bool stepwise;
  void* hidden;  // [L - 1, R, D * H], the outputs of all layers but the last; null if there are none
  void* out;     // [R, D * H], those of the last
  void* h_n;     // [L * D, B, H], or null if it is not wanted
  // [L, R, D * H], what a cell computes on the way to its output, of all layers; null of Elman's cell, and if
  // they are not wanted.
  void* inner = nullptr;
};

// The gradients of a stack. One whose pointer is null is not computed, nor is a layer of which, and of those below,
// nothing is wanted. What only such gradients read may be null, too: x for the first w_ih; a w_ih for dx and the
// gradients of the layers below; with T = 1 a w_hh for dh0; the biases and noise always. The gradient of a ctrnn's
// alpha reads the input, both weights and the biases of its layer.
struct StackBackwardArgs {
  Stack stack;
  const void* hidden;            // [L - 1, R, D * H], or null if there are none
  const void* out;               // [R, D * H]
  const void* dout;              // [R, D * H], or null for zeros
  const void* dh_n;              // [L * D, B, H], or null for zeros
  void* dx;                      // [R, I]
  void* dh0;                     // [L * D, B, H]
  void* const* dweights;         // like weights. The gradients of both biases are equal; each has memory of its own.
  const void* inner = nullptr;   // [L, R, D * H], or null of Elman's cell
  const void* dinner = nullptr;  // [L, R, D * H], of a ctrnn alone, or null for zeros
};

// ---- a part of a layer -----------------------------------------------------------------------------

struct RecurrenceArgs {
  DType dtype;
  Activation activation;
  Sequences sequences;
  const void* h0;    // [B, H]
  const void* w_hh;  // [H, H]
  void* out;         // [R, H]  holds pre on entry, h on return
  void* h_n;         // [B, H]
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  int (*stack)(const StackArgs&, int threads);
  int (*stack_backward)(const StackBackwardArgs&, int threads);
  int (*recurrence)(const RecurrenceArgs&, int threads);                 // the recurrence alone
  double (*fma_peak)(DType, int threads, double seconds);                // flop/s, of multiply-adds
  double (*read_bandwidth)(int64_t bytes, int threads, double seconds);  // bytes/s
  void (*release_scratch)(int threads);  // frees what the calling thread and its team keep from call to call
};

}  // namespace rnnfast
