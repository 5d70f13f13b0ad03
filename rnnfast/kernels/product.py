"""The tile product that the step kernels are made of: acc[m, n] += sum over k of a[m, k] b[k, n].

Every operand is a pointer and two strides, so that transposes and the two halves of the concatenated
product [x, h] [W_ih, W_hh]^T are all the same loop. Masks cover the edges of m, n and k; what they hide
counts as zero.
"""

import triton
import triton.language as tl

from .activation import activation_backward


@triton.jit
def multiply(
    acc,  # [BLOCK_M, BLOCK_N] float32
    a,  # element (m, k) at a + m * a_m + k * a_k
    a_m,
    a_k,
    h,  # like a: where given, a stands for activation_backward(a, h); else None
    m,  # [BLOCK_M] int64, the rows of a
    M,
    b,  # element (k, n) at b + k * b_k + n * b_n
    b_k,
    b_n,
    n,  # [BLOCK_N] int64, the columns of b
    N,
    K,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    a_at = m[:, None] * a_m + k[None, :] * a_k
    b_at = k[:, None] * b_k + n[None, :] * b_n
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        a_mask = (m < M)[:, None] & inside[None, :]
        a_tile = tl.load(a + a_at, mask=a_mask, other=0.0)
        if h is not None:
            h_tile = tl.load(h + a_at, mask=a_mask, other=0.0).to(tl.float32)
            a_tile = activation_backward(a_tile.to(tl.float32), h_tile, ACTIVATION).to(a_tile.dtype)
        b_tile = tl.load(b + b_at, mask=inside[:, None] & (n < N)[None, :], other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
        a_at += BLOCK_K * a_k
        b_at += BLOCK_K * b_k
    return acc
