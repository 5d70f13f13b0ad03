"""The tile product that the step kernels are made of: acc[m, n] += sum over k of a[m, k] b[k, n].

Every operand is a pointer and two strides, so that one loop serves transposes and both halves of the
concatenated product [x, h] [W_ih, W_hh]^T. Masks cover the edges of m, n and k; masked elements are
zero.
"""

import triton
import triton.language as tl

from .activation import activation_backward


@triton.jit
def multiply(
    acc,  # [BLOCK_M, BLOCK_N] float32, updated
    a,  # [M, K]: element (m, k) at a + m * a_m + k * a_k
    a_m,
    a_k,
    h,  # [M, K], strides like a's, or None; where given, activation_backward(a, h) takes the place of a
    m0,  # int64, the first row of the tile
    M,
    b,  # [K, N]: element (k, n) at b + k * b_k + n * b_n
    b_k,
    b_n,
    n0,  # int64, the first column of the tile
    N,
    K,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    # A tile's position has 64 bits and offsets inside it 32: 64 bits for every element would spill.
    m = tl.arange(0, acc.shape[0])
    n = tl.arange(0, acc.shape[1])
    k = tl.arange(0, BLOCK_K)
    a_at = m[:, None] * a_m + k[None, :] * a_k
    b_at = k[:, None] * b_k + n[None, :] * b_n
    a_start, b_start = m0 * a_m, n0 * b_n
    rows, columns = (m0 + m < M)[:, None], (n0 + n < N)[None, :]
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        a_mask = rows & inside[None, :]
        a_tile = tl.load(a + a_start + a_at, mask=a_mask, other=0.0)
        if h is not None:
            h_tile = tl.load(h + a_start + a_at, mask=a_mask, other=0.0).to(tl.float32)
            a_tile = activation_backward(a_tile.to(tl.float32), h_tile, ACTIVATION).to(a_tile.dtype)
        b_tile = tl.load(b + b_start + b_at, mask=inside[:, None] & columns, other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
        a_start += tl.cast(a_k, tl.int64) * BLOCK_K
        b_start += tl.cast(b_k, tl.int64) * BLOCK_K
    return acc
