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
//   backward   dpre_t = (dout_t + dpre_{t+1} W_hh) act'(h_t)
//
// That is the Elman cell. With a_t for the argument of act, n_t for noise [R, H] and alpha [H] in (0, 1], the cells are
//
//   elman      h_t = act(a_t + n_t)
//   leaky      h_t = (1 - alpha) h_{t-1} + alpha f_t,  f_t = act(a_t + n_t)
//   ctrnn      v_t = (1 - alpha) v_{t-1} + alpha a_t + n_t,  r_t = act(v_t)
//
// ctrnn carries the state v, of which h0 is the first and h_n the last; r = act(v) takes the place of h in a_t and is
// the output. A reset step starts from the state zero, whatever came before. What a cell computes on the way to its
// output, f_t or v_t, is its `inner`. With dh_t, dv_t for the whole gradient of h_t and v_t:
//
//   leaky      dh_t = dout_t + dpre_{t+1} W_hh + (1 - alpha) dh_{t+1};  dpre_t = alpha dh_t act'
//   ctrnn      dv_t = dinner_t + (dout_t + dpre_{t+1} W_hh) act' + (1 - alpha) dv_{t+1};  dpre_t = alpha dv_t
//   dalpha     sum of dh_t (f_t - h_{t-1}), of dv_t (a_t - v_{t-1});  dn_t = dpre_t, of ctrnn dv_t
//
// where a term of step t + 1 is zero if that step was reset. act' comes from the value of act, h, alone: tanh' = 1 -
// h^2, relu' = [h > 0], sigmoid' = h (1 - h), softplus' = 1 - exp(-h), identity' = 1.
#pragma once

namespace rnnfast {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
enum class Activation : int { kTanh = 0, kRelu = 1, kSigmoid = 2, kSoftplus = 3, kIdentity = 4 };
enum class Cell : int { kElman = 0, kLeaky = 1, kCtrnn = 2 };

}  // namespace rnnfast
