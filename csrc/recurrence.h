// The kernel contract in C. Everything under csrc is torch-free: raw pointers, sizes and a thread count.
//
// Notation: T steps, B sequences, I inputs, H hidden units, R rows. Matrices are dense and row-major. Rows are
// time-major: a dense batch has R = T * B rows; a packed one has batch_sizes[t] rows at step t, non-increasing,
// batch_sizes[0] = B. `reverse` walks the same rows from the last step to the first: sequences then start late,
// at the first step that has a row for them, from their row of h0.
//
//   forward    h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
//   backward   dpre_t = (dout_t + dpre_{t+1} W_hh) act'(h_t);  act' from h alone: tanh' = 1 - h^2, relu' = [h > 0]
//
// Every function returns 0, or nonzero when scratch memory could not be had (nothing useful is written then).
#pragma once

#include <stdint.h>

namespace rnnfast {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum class Activation : int { kTanh = 0, kRelu = 1 };

struct Walk {
  int64_t T, B, H;
  const int64_t* batch_sizes;  // [T], or null: B rows at every step
  bool reverse;
};

// ---- the contract ----------------------------------------------------------------------------------

// One step: one accumulator over both products.
struct StepArgs {
  DType dtype;
  Activation activation;
  int64_t B, I, H;
  const void* x;     // [B, I]
  const void* h;     // [B, H]
  const void* w_ih;  // [H, I]
  const void* w_hh;  // [H, H]
  const void* b_ih;  // [H], or null
  const void* b_hh;  // [H], or null
  void* out;         // [B, H]
};

// A whole sequence. `stepwise` (dense batches only) runs it as fused steps, which read the weights in place instead of
// packing them; the shortest sequences are faster that way.
struct SequenceArgs {
  DType dtype;
  Activation activation;
  Walk walk;
  int64_t I;
  bool stepwise;
  const void* x;     // [R, I]
  const void* h0;    // [B, H]
  const void* w_ih;  // [H, I]
  const void* w_hh;  // [H, H]
  const void* b_ih;  // [H], or null
  const void* b_hh;  // [H], or null
  void* out;         // [R, H]
  void* h_n;         // [B, H]
};

// The gradients of a sequence, and with T = 1 those of a step. A gradient whose pointer is null is not computed. What
// only that gradient reads may be null, too: x for dw_ih, h0 for dw_hh, w_ih for dx, and with T = 1 w_hh for dh0.
struct SequenceBackwardArgs {
  DType dtype;
  Activation activation;
  Walk walk;
  int64_t I;
  const void* dout;  // [R, H], or null for zeros
  const void* dh_n;  // [B, H], or null for zeros
  const void* x;     // [R, I]
  const void* h0;    // [B, H]
  const void* w_ih;  // [H, I]
  const void* w_hh;  // [H, H]
  const void* out;   // [R, H]
  void* dx;          // [R, I]
  void* dh0;         // [B, H]
  void* dw_ih;       // [H, I]
  void* dw_hh;       // [H, H]
  void* db;          // [H], the gradient of either bias
};

// ---- the parts of a sequence -----------------------------------------------------------------------

struct ForwardArgs {
  DType dtype;
  Activation activation;
  Walk walk;
  const void* h0;    // [B, H]
  const void* w_hh;  // [H, H]
  void* out;         // [R, H]  holds pre on entry, h on return
  void* h_n;         // [B, H]
};

// c = a b + bias0 + bias1, with b = w^T ([N, K] given) or b = w ([K, N] given).
struct ProductArgs {
  DType dtype;
  int64_t R, N, K;
  const void* a;  // [R, K]
  const void* w;  // [N, K] if transposed, else [K, N]
  bool transposed;
  const void* bias0;  // [N], or null
  const void* bias1;  // [N], or null
  void* c;            // [R, N]
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  int (*step)(const StepArgs&, int threads);
  int (*sequence)(const SequenceArgs&, int threads);
  int (*sequence_backward)(const SequenceBackwardArgs&, int threads);
  int (*forward)(const ForwardArgs&, int threads);                       // the recurrence alone
  double (*fma_peak)(DType, int threads, double seconds);                // flop/s, of multiply-adds
  double (*read_bandwidth)(int64_t bytes, int threads, double seconds);  // bytes/s
};

}  // namespace rnnfast
