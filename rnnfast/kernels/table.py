"""The tiles of the Triton kernels: one explicit table, keyed by element type and hidden size.

There is no tuning at run time, so no call waits for a search. The batch is in no key, so a sequence is
computed by the same tiles in any batch. tests/test_triton_compile.py compiles every row and asserts that
nothing spills; `python -m rnnfast.inspect --table` prints the resources of every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch

# The precision of a float32 product: "tf32" where torch lets cuDNN's RNNs use it, else "tf32x3", three TF32
# products whose sum regains what the rounding of the operands loses. True float32 ("ieee") has no matrix
# instruction and spills.
TF32, EXACT = "tf32", "tf32x3"


@dataclass(frozen=True)
class Resident:
    """One program for a tile of sequences, W_hh in shared memory."""

    rows: int  # BLOCK_B
    warps: int
    backward_warps: int
    keep: bool  # W_hh stays in registers; else it is read from shared memory in every step
    shared: int  # bytes of shared memory, the most that either kernel takes


@dataclass(frozen=True)
class Tiles:
    """A product's tile."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# The key is (bytes of an element, precision, BLOCK_H), where H is padded up to the next BLOCK_H. The warps
# are so many that a thread has 8 elements of the state, which change between layouts in one round with one
# pair of barriers. They are fewer where the backward of H = 256 needs more than the 128 registers a thread
# that 16 warps leave.
RESIDENT = {
    (2, TF32, 16): Resident(16, 1, 1, True, 1536),
    (2, TF32, 32): Resident(16, 2, 2, True, 4096),
    (2, TF32, 64): Resident(16, 4, 4, True, 12288),
    (2, TF32, 128): Resident(16, 8, 8, True, 40960),
    (2, TF32, 256): Resident(16, 16, 8, True, 147456),
    (4, TF32, 16): Resident(16, 1, 1, True, 2048),
    (4, TF32, 32): Resident(16, 2, 2, True, 8192),
    (4, TF32, 64): Resident(16, 4, 4, True, 24576),
    (4, TF32, 128): Resident(16, 8, 8, True, 81920),
    (4, EXACT, 16): Resident(16, 1, 1, True, 2048),
    (4, EXACT, 32): Resident(16, 2, 2, True, 8192),
    (4, EXACT, 64): Resident(16, 4, 4, True, 32768),
    (4, EXACT, 128): Resident(16, 8, 8, False, 147456),
}

# Cells that leak have more to keep in registers: where W_hh leaves no room for it, W_hh is in shared memory.
LEAKING = {(2, TF32, 256): Resident(16, 16, 8, False, 147456)}

# The key is the bytes of an element. Tiles are narrow: a step has little work, and more programs share
# reading the weights.
STEP = {
    2: Tiles(16, 32, 128, 4, 3),
    4: Tiles(16, 32, 64, 4, 3),
}
# Weight gradients sum over the batch. A larger tile spills where it is loaded element by element.
WEIGHTS = Tiles(32, 64, 32, 4, 3)


def resident(
    dtype: torch.dtype, precision: str, hidden_size: int, cell: str = "elman"
) -> Optional[tuple[int, Resident]]:
    """BLOCK_H and its row of the table, or None where W_hh is too large to stay in shared memory."""
    block = max(16, 1 << (hidden_size - 1).bit_length())
    key = dtype.itemsize, TF32 if dtype.itemsize == 2 else precision, block
    row = RESIDENT.get(key)
    if row is not None and cell != "elman":
        row = LEAKING.get(key, row)
    return None if row is None else (block, row)
