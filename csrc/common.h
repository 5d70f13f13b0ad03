// What all kernels of csrc have in common, on the CPU and on GPUs: notation, equations, dtypes and activations.
//
// Everything under csrc is torch-free: raw pointers, sizes, and a thread count or a stream. cpu/contract.h and
// cuda/contract.h say what the kernels take.
//
// Notation: T steps, B sequences, I inputs, H hidden units, R rows. Matrices are dense and row-major. Rows are
// time-major: a dense batch has R = T * B rows; a packed one has batch_sizes[t] rows at step t, non-increasing,
// batch_sizes[0] = B. `reverse` takes the same rows from the last step to the first: sequences then start late,
// at the first step that has a row for them, from their row of h0.
//
//   forward    h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)
//   backward   dpre_t = (dout_t + dpre_{t+1} W_hh) act'(h_t);  act' from h alone: tanh' = 1 - h^2, relu' = [h > 0]
#pragma once

namespace rnnfast {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum class Activation : int { kTanh = 0, kRelu = 1 };

}  // namespace rnnfast
