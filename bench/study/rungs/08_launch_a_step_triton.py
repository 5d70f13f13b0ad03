"""Rung 8b. Rung 8 in Triton: a kernel for every step.

    h_t = tanh(pre_t + W_hh h_{t-1})        for every t

Who holds what. A program has BLOCK_N units of one sequence; Triton decides which thread has what of them.

    launch t      program (b, n): units n BLOCK_N ..      W_hh [BLOCK_N, BLOCK_K] and h [BLOCK_K] from L2,
                                                          BLOCK_K columns at a time; h_t to L2
    launch t + 1  the same

Floor. That of rung 8, one launch a step, and the launch itself is dearer: Triton's launcher is Python,
which matters until the launches are recorded in a graph.

The shipped kernel: rnnfast/kernels/stepwise.py.
"""

import triton
import triton.language as tl


@triton.jit
def step_kernel(
    pre,  # [B, H], of this step
    w_hh,  # [H, H]
    before,  # [B, H], h_{t-1}
    after,  # [B, H], h_t
    H,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0) * H
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, H, BLOCK_K):
        at = start + k
        h = tl.load(before + row + at, mask=at < H, other=0.0)
        inside = (n < H)[:, None] & (at < H)[None, :]
        w = tl.load(w_hh + n[:, None] * H + at[None, :], mask=inside, other=0.0)
        sums += w * h[None, :]
    total = tl.sum(sums, axis=1) + tl.load(pre + row + n, mask=n < H, other=0.0)
    # tanh by the exponential of a number that is not positive, which can't overflow.
    e = tl.exp(-2.0 * tl.abs(total))
    h = (1.0 - e) / (1.0 + e)
    tl.store(after + row + n, tl.where(total < 0.0, -h, h), mask=n < H)


def launch(pre, w_hh, h0, out):
    """pre, out [T, B, H], w_hh [H, H], h0 [B, H]. Returns the number of launches."""
    steps, batch, hidden = pre.shape
    for t in range(steps):
        before = out[t - 1] if t else h0
        step_kernel[(batch, triton.cdiv(hidden, 16))](
            pre[t], w_hh, before, out[t], hidden, BLOCK_N=16, BLOCK_K=64
        )
    return steps


# Exercise. 1 - e^-2|x| loses leading digits near 0. How large does the relative error of h become for
# x = 1e-4, and is the rung still right? (test_exercise_8b)
