"""Rung 7a: backward, the chain rule step by step.

    g_t  = (dL/dh_t + g_{t+1} W_hh) * (1 - h_t^2)       from the last step to the first; tanh' = 1 - h^2
    dx_t = g_t W_ih        dW_ih += g_t^T x_t        dW_hh += g_t^T h_{t-1}        db += sum of g_t's rows

This is what autograd does with the loop of rung 1. Nothing but the output has to be kept for it. Every step
does four products:

      g_{t+1} --> product with W_hh --> + dL/dh_t --> * (1 - h_t^2) --> g_t --> dx_t, dW_ih, dW_hh, db
                  waits for the step before it                                  wait for nothing

Floor: 2 B H (H + I) multiply-adds a step, twice those of forward. Above it: two matrices of gradients, read
and written at every step, and some fifteen calls of operators.
"""

import torch


def backward(x, h0, w_ih, w_hh, out, grad_out):  # x [T, B, I], out and grad_out [T, B, H]
    dw_ih, dw_hh, db = torch.zeros_like(w_ih), torch.zeros_like(w_hh), w_hh.new_zeros(len(w_hh))
    dx, dh = torch.empty_like(x), torch.zeros_like(h0)
    for t in reversed(range(len(x))):
        h = out[t]
        g = (grad_out[t] + dh) * (1 - h * h)
        dw_ih.addmm_(g.t(), x[t])
        dw_hh.addmm_(g.t(), out[t - 1] if t else h0)
        db += g.sum(0)
        torch.mm(g, w_ih, out=dx[t])
        dh = g @ w_hh
    return dx, dh, dw_ih, dw_hh, db


# Exercise 7a. Put relu in the place of tanh: relu' can be had from the output alone, too. (test_exercise_7a)
