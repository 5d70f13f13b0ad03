"""Rung 9b. Rung 9 in Triton: one program for all steps of a sequence.

    h_t = tanh(pre_t + W_hh h_{t-1})        for every t

Who holds what. W_hh is a block of values of the program, used elementwise, so that Triton keeps it in
registers: a tl.dot would read it again from shared memory in every step.

    program b: sequence b
      W_hh [BLOCK_H, BLOCK_H]   registers of all threads, from the first step to the last
      h [BLOCK_H]               registers, too; Triton moves it between threads through shared memory,
                                where the sum along a row has to become a factor along a column

Floor. That of rung 9, but Triton places the barriers; bench/study/GPU.md has their number. Nothing in
the language says that one would be enough, so there is no rung 10b.

The shipped kernel: rnnfast/kernels/resident.py.
"""

import triton
import triton.language as tl


@triton.jit
def persistent_kernel(
    pre,  # [T, B, H]
    w_hh,  # [H, H]
    h0,  # [B, H]
    out,  # [T, B, H]
    T,
    B,
    H,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0)
    n = tl.arange(0, BLOCK_H)
    inside = (n < H)[:, None] & (n < H)[None, :]
    w = tl.load(w_hh + n[:, None] * H + n[None, :], mask=inside, other=0.0)
    h = tl.load(h0 + b * H + n, mask=n < H, other=0.0)
    for t in range(T):
        at = (t * B + b) * H + n
        total = tl.sum(w * h[None, :], axis=1) + tl.load(pre + at, mask=n < H, other=0.0)
        e = tl.exp(-2.0 * tl.abs(total))  # tanh as in rung 8b
        h = (1.0 - e) / (1.0 + e)
        h = tl.where(total < 0.0, -h, h)
        tl.store(out + at, h, mask=n < H)


def launch(pre, w_hh, h0, out):
    """pre, out [T, B, H], w_hh [H, H], h0 [B, H]; H <= 128. Returns the number of launches."""
    steps, batch, hidden = pre.shape
    block = max(16, triton.next_power_of_2(hidden))
    persistent_kernel[(batch,)](pre, w_hh, h0, out, steps, batch, hidden, BLOCK_H=block, num_warps=8)
    return 1


# Exercise. H = 129 makes BLOCK_H 256: how many registers a thread would W_hh take then, with 8 warps, and how
# many are there? (test_exercise_9b)
