"""A step of the cells that leak, inside Triton kernels, in float32; elman's needs nothing but `activation`.

    leaky    h = keep h_before + alpha f(a + n)                    carried to the product: h
    ctrnn    v = keep v_before + alpha a + n,  r = f(v)            carried to the product: r

keep is 1 - alpha. `state` is h or v; it stays in float32 from step to step whatever the type of the outputs,
so that small alpha loses nothing. With alpha = 1 both are f(a) to the last bit.

    leaky    g = dout + p + q,              dpre = f'(f) (alpha g + df)
    ctrnn    g = dv + f'(r) (dout + p) + q, dpre = alpha g
    both     p_before = dpre W_hh, q_before = keep g

g is the gradient of the state. p comes back through the product, and q, in float32, through the leak.
"""

import math

import triton
import triton.language as tl

from ..layer import Recurrence
from .activation import activate, activation_backward


@triton.jit
def leak(
    a,  # [BLOCK_B, BLOCK_H], the pre-activation
    state,
    noise,  # of a ctrnn alone; 0 if there is none
    alpha,  # [1, BLOCK_H]
    ACTIVATION: tl.constexpr,
    CELL: tl.constexpr,
):
    """The new state, what is carried, and what is kept for the backward pass (leaky f, ctrnn v)."""
    if CELL == "leaky":
        f = activate(a, ACTIVATION)
        state = (1.0 - alpha) * state + alpha * f
        return state, state, f
    else:
        tl.static_assert(CELL == "ctrnn")
        state = (1.0 - alpha) * state + alpha * a + noise
        return state, activate(state, ACTIVATION), state


@triton.jit
def leak_backward(
    dout,  # [BLOCK_B, BLOCK_H], with p
    dinner,  # of f or v; 0 if there is none
    q,
    value,  # f or r
    alpha,  # [1, BLOCK_H]
    ACTIVATION: tl.constexpr,
    CELL: tl.constexpr,
):
    """g and dpre."""
    if CELL == "leaky":
        g = dout + q
        return g, activation_backward(alpha * g + dinner, value, ACTIVATION)
    else:
        tl.static_assert(CELL == "ctrnn")
        g = activation_backward(dout, value, ACTIVATION) + dinner + q
        return g, alpha * g


def at_zero(recurrence: Recurrence) -> float:
    """What is carried to the product of a state of zeros."""
    return {"sigmoid": 0.5, "softplus": math.log(2)}.get(recurrence.nonlinearity, 0.0) * (
        recurrence.cell == "ctrnn"
    )
