"""The recurrence over the whole device (csrc/cuda/grid), its source executed on a CPU, against float64.

Several blocks run at the same time and exchange their states as they would on a device. What that proves and
what not is in cuda_on_cpu/machine.h.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import pytest
import torch
from torch import Tensor

from rnnfast import testing
from rnnfast.backends.cuda import CudaBackend
from rnnfast.testing import check
from tests import cuda_on_cpu
from tests.test_cuda_build import kernels, whole_build

pytestmark = [
    pytest.mark.slow,  # building the sources for the CPU takes half a minute, once
    pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())),
]

KINDS = {  # name: dtype, its number in the contract
    "bfloat16": (torch.bfloat16, 2),
    "float16": (torch.float16, 3),
    "float32": (torch.float32, 0),
    "tf32": (torch.float32, 0),
}
PATIENCE = 100_000  # far more looks than a block needs here
UNSUPPORTED, NOT_RESIDENT = -1, -2
SHIPPED = {"groups": 0}  # through the launchers that the package uses


class Arguments(ctypes.Structure):
    """ForwardArgs and BackwardArgs of csrc/cuda/contract.h: the same layout, with other pointers."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("tf32", ctypes.c_bool),
        ("T", ctypes.c_int64),
        ("B", ctypes.c_int64),
        ("H", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("reverse", ctypes.c_bool),
        ("pointers", ctypes.c_void_p * 6),
    ]


class Exchange(ctypes.Structure):
    _fields_ = [("R", ctypes.c_int64), ("stride", ctypes.c_int64), ("fault", ctypes.c_void_p)]


@lru_cache
def library():
    sources = [cuda_on_cpu.HERE / "grid_small.cu"]
    sources += [cuda_on_cpu.KERNELS / name for name in ("grid/forward.cu", "grid/backward.cu")]
    loaded = ctypes.CDLL(str(cuda_on_cpu.build("grid", sources)))
    loaded.cuda_on_cpu_last_failure.restype = ctypes.c_char_p
    return loaded


@dataclass
class Case:
    """One layer's recurrence in one dtype; `expected` is computed from the same numbers in float64."""

    kind: str
    T: int
    H: int
    lengths: list[int]  # of the sequences, longest first
    nonlinearity: str = "tanh"
    reverse: bool = False
    seed: int = 0

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype)

        B = len(self.lengths)
        self.sizes = [sum(n > t for n in self.lengths) for t in range(self.T)]
        self.offsets = torch.tensor([sum(self.sizes[:t]) for t in range(self.T + 1)])
        R = sum(self.sizes)
        # Of norm 1/2, about: that of a Gaussian matrix is near 2 sqrt(H).
        self.weight = (normal(self.H, self.H).double() / (4 * self.H**0.5)).to(self.dtype)
        self.pre, self.h0 = normal(R, self.H), normal(B, self.H).tanh()
        self.grad_out: Optional[Tensor] = normal(R, self.H)
        self.grad_hn: Optional[Tensor] = normal(B, self.H)

    @property
    def dtype(self):
        return KINDS[self.kind][0]

    @property
    def packed(self):
        return len(set(self.lengths)) > 1

    def tolerance(self) -> float:
        return testing.tolerance(self.dtype, self.H, tf32=self.kind == "tf32")

    def truth(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """out, h_n, dpre and dh0 by the reference: those of a layer whose W_ih is the identity."""
        inputs = dict.fromkeys(testing.NAMES)
        inputs.update(x=self.pre, h0=self.h0, weight_ih=torch.eye(self.H), weight_hh=self.weight)
        gradients = [
            torch.zeros_like(like) if gradient is None else gradient
            for gradient, like in ((self.grad_out, self.pre), (self.grad_hn, self.h0))
        ]
        layer = testing.Case(inputs, *gradients, torch.tensor(self.sizes))
        out, h_n, (dpre, dh0, *_) = testing.expected(layer, self.nonlinearity, self.reverse)
        return out, h_n, dpre, dh0

    # ---- the kernels ----

    def run(
        self,
        direction: str,
        first: Tensor,
        *pointers: Optional[Tensor],
        seed=0,
        groups=1,
        missing=0,
        patience=PATIENCE,
        multiprocessors=64,
        size=0,
    ) -> tuple[int, int]:
        """The launcher's result, and the step at which a block lost its patience, or 0."""
        fault = torch.zeros(1, dtype=torch.int32)
        addresses = [0 if p is None else p.data_ptr() for p in pointers]
        arguments = Arguments(
            KINDS[self.kind][1],
            int(self.nonlinearity == "relu"),
            self.kind == "tf32",
            self.T,
            len(self.lengths),
            self.H,
            self.offsets.data_ptr() if self.packed else None,
            self.reverse,
            (ctypes.c_void_p * 6)(*addresses),
        )
        exchange = Exchange(int(self.offsets[-1]), first.shape[1], fault.data_ptr())
        native = library()
        native.cuda_on_cpu_configure(seed, multiprocessors, ctypes.c_int64(100_000), ctypes.c_uint64(1000))
        result = getattr(native, f"run_grid_{direction}")(
            ctypes.byref(arguments),
            ctypes.byref(exchange),
            ctypes.c_int64(groups),
            ctypes.c_int64(missing),
            ctypes.c_uint32(patience),
            size,
        )
        if result > 0:
            pytest.fail(native.cuda_on_cpu_last_failure().decode())
        return result, int(fault)

    def padded(self, matrix: Tensor) -> Tensor:
        """With rows that are multiples of 16 bytes."""
        return torch.nn.functional.pad(matrix, (0, -self.H % (16 // self.dtype.itemsize))).contiguous()

    def run_forward(self, **options):
        y, h_n = self.padded(poisoned(self.pre)), poisoned(self.h0)
        status = self.run("forward", y, self.pre, self.padded(self.h0), self.weight, y, h_n, **options)
        assert y[:, self.H :].eq(0).all()
        return y[:, : self.H], h_n, status

    def run_backward(self, out: Tensor, **options):
        y, dh0 = self.padded(poisoned(self.pre)), poisoned(self.h0)
        status = self.run("backward", y, self.grad_out, self.grad_hn, out, self.weight, y, dh0, **options)
        assert y[:, self.H :].eq(0).all()
        return y[:, : self.H], dh0, status

    def check(self, **options):
        """Both directions against float64. Returns out, h_n, dpre and dh0."""
        out, h_n, dpre, dh0 = self.truth()
        y, last, status = self.run_forward(**options)
        assert status == (0, 0)
        check("out", y, out, self.tolerance())
        check("h_n", last, h_n, self.tolerance())
        g, g0, status = self.run_backward(out.to(self.dtype), **options)
        assert status == (0, 0)
        check("dpre", g, dpre, self.tolerance())
        check("dh0", g0, dh0, self.tolerance())
        return y, last, g, g0


def poisoned(like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"))


DENSE = {"one": (1, 1), "two tiles": (3, 11), "full tile": (5, 8)}  # T, B
# Sequences leave (or, in reverse, join) by tile and within a tile, in a tile of their own, all at once.
PACKED = [[3, 2, 1], [4] * 8 + [2] * 3, [5] + [1] * 16, [4, 4, 3, 3, 3, 3, 2, 2, 1, 1], [3] * 9]


@pytest.mark.sample(8)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("H", [5, 32, 47, 64])
@pytest.mark.parametrize("size", DENSE)
def test_dense(kind, nonlinearity, H, size):
    T, B = DENSE[size]
    Case(kind, T, H, [T] * B, nonlinearity, reverse=H == 47).check(groups=2 if size == "two tiles" else 1)


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", PACKED, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_packed(kind, reverse, lengths, groups):
    Case(kind, lengths[0], 24, lengths, reverse=reverse).check(groups=groups, seed=groups + 1)


@pytest.mark.sample(3)
# Up to 512, 1024 and 2048 are different instantiations. On 34 multiprocessors the 3 tiles have 2 groups or 3.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "T, H, B, multiprocessors",
    [(4, 72, 11, 128), (3, 264, 20, 34), (2, 520, 2, 128), (2, 1032, 1, 128), (2, 2048, 2, 128)],
)
def test_shipped(kind, T, H, B, multiprocessors):
    Case(kind, T, H, [T] * B).check(multiprocessors=multiprocessors, **SHIPPED)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_in_any_order_and_in_any_batch(kind):
    case = Case(kind, 3, 40, [3] * 11)
    results = [case.check(seed=seed, groups=1 + seed % 2) for seed in range(5)]
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))
    alone = Case(kind, 3, 40, [3])
    alone.weight, alone.pre, alone.h0 = case.weight, case.pre[9::11].contiguous(), case.h0[9:10]
    alone.grad_out, alone.grad_hn = case.grad_out[9::11].contiguous(), case.grad_hn[9:10]
    y, h_n, _ = alone.run_forward()
    assert torch.equal(y, results[0][0][9::11]) and torch.equal(h_n, results[0][1][9:10])


@pytest.mark.parametrize("missing", ["grad_out", "grad_hn"])
def test_missing_gradient_is_zero(missing):
    case = Case("float32", 3, 20, [3, 3, 1])
    setattr(case, missing, None)
    case.check()


def all_ones(matrix: Tensor) -> None:
    """Fills with the NaN that has every bit set, the pattern of memory that nobody has stored to."""
    matrix.view(torch.int32 if matrix.dtype is torch.float32 else torch.int16).fill_(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("where", ["pre", "h0"])
def test_nan_stays_in_its_sequence_and_stops_nobody(kind, nonlinearity, where):
    case = Case(kind, 4, 40, [4] * 9, nonlinearity)
    expected = case.truth()[0]
    all_ones(getattr(case, where)[2])  # of `pre`, the first step
    out, h_n, status = case.run_forward()
    assert status == (0, 0)
    mine = torch.arange(len(out)) % 9 == 2
    assert out[mine].isnan().all() and h_n[2].isnan().all()
    check("out", out[~mine], expected[~mine], case.tolerance())
    all_ones(case.grad_hn[2])
    dpre, dh0, status = case.run_backward(out)
    assert status == (0, 0)
    assert dpre[mine].isnan().all() and dh0[2].isnan().all()
    assert not dpre[~mine].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_infinity_does_not_meet_the_padding(kind):
    """0 * inf in the units that fill up a row would turn the whole next state into NaN."""
    case = Case(kind, 3, 21, [3, 3], "relu")
    case.pre[0, 3] = float("inf")
    # Not by the reference, in which W_ih would meet the infinity: 0 * inf.
    out, h_n = torch.empty(3, 2, 21), case.h0.float()
    for t, pre in enumerate(case.pre.float().view(3, 2, 21)):
        out[t] = h_n = torch.relu(pre + h_n @ case.weight.float().T)
    out = out.view(6, 21)
    y, last, status = case.run_forward()
    assert status == (0, 0)
    assert torch.equal(y.isnan(), out.isnan()) and torch.equal(y.isinf(), out.isinf())
    assert not out[2].isnan().all()
    assert torch.equal(last.isnan(), h_n.isnan())


def test_nan_in_the_weights_does_not_reach_the_last_step_s_gradient():
    case = Case("bfloat16", 3, 24, [3, 2])
    out = case.truth()[0].to(case.dtype)
    case.weight[0, 0] = float("nan")
    dpre, dh0, status = case.run_backward(out)
    assert status == (0, 0)
    last = torch.tensor([False, False, False, True, True])
    assert not dpre[last].isnan().any() and dpre[~last].isnan().any() and dh0.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_missing_block_is_reported_and_waited_for_once(kind, direction):
    """The last block never comes: the others give up at the second step, finish, and say so."""
    case = Case(kind, 6, 64, [6] * 3)
    out = case.truth()[0].to(case.dtype)
    y, last, (result, fault) = (
        case.run_forward(missing=1, patience=50)
        if direction == "forward"
        else case.run_backward(out, missing=1, patience=50)
    )
    assert (result, fault) == (0, 2)
    assert last.isnan().all()
    first = slice(0, 3) if direction == "forward" else slice(15, 18)
    assert not y[first, :48].isnan().any()  # what was computed before anybody had to wait


def test_fault_is_raised_once_by_check():
    backend = CudaBackend()
    backend.check()
    backend._faults[torch.device("cpu")] = torch.tensor([3], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"on cpu waited in vain .* at step 2 of its walk"):
        backend.check()
    backend.check()


def test_refusals():
    case = Case("bfloat16", 2, 32, [2])
    y, h_n = poisoned(case.pre), poisoned(case.h0)

    def status(case, y, h0):
        return case.run("forward", y, case.pre, h0, case.weight, y, h_n, **SHIPPED)[0]

    assert status(case, y, case.h0) == 0
    assert status(case, case.pre, case.h0) == UNSUPPORTED  # in place
    assert status(case, case.padded(y)[:, :31], case.h0) == UNSUPPORTED  # stride
    assert status(case, y, torch.empty(33, dtype=case.dtype)[1:]) == UNSUPPORTED  # alignment
    case.H = 2049
    assert status(case, torch.empty(1, 2056), case.h0) == UNSUPPORTED
    case.H = 2048
    y = torch.empty(2, 2048, dtype=torch.bfloat16)
    assert (
        case.run("forward", y, case.pre, y, case.weight, y.clone(), h_n, multiprocessors=63, **SHIPPED)[0]
        == NOT_RESIDENT
    )


@pytest.mark.parametrize(
    ("kind", "multiprocessors", "limit"),
    [
        ("bfloat16", 132, 2048),
        ("bfloat16", 64, 2048),
        ("bfloat16", 40, 1280),
        ("float16", 12, 384),
        ("tf32", 132, 2048),
        ("tf32", 108, 1728),
        ("tf32", 40, 1024),
        ("float32", 132, 2048),
        ("float32", 30, 480),
    ],
)
def test_limits(kind, multiprocessors, limit):
    """H that the launchers take: all blocks on the device at the same time, one on a multiprocessor here."""
    native = library()
    native.cuda_on_cpu_configure(0, multiprocessors, ctypes.c_int64(1000), ctypes.c_uint64(1000))
    for direction in ("forward", "backward"):
        function = getattr(native, f"rnnfast_cuda_grid_{direction}_limit")
        function.restype = ctypes.c_int64
        assert function(KINDS[kind][1], kind == "tf32") == limit
    assert function(1, False) == 0  # float64


MULTIPROCESSORS = {"sm_80": 108, "sm_90a": 132, "sm_120": 170}  # A100, H100, RTX 5090


@whole_build
def test_registers_leave_room_for_all_blocks_at_once():
    """What ptxas says, against the H that each instantiation is to take (on an A100, 32 bits up to 1728)."""
    found = set()
    for name, usage in kernels():
        if "grid::recur<" not in name:
            continue
        engine, rows, vectors, warps = re.search(r"(Mma<[\w:]+, |Ffma<)(\d+), (\d+), (\d+)>", name).groups()
        rows, vectors, warps = int(rows), int(vectors), int(warps)
        is_float = "float" in engine or engine == "Ffma<"
        capacity = warps * vectors * (16 if is_float else 32)
        if usage.architecture == "sm_80" and is_float:
            capacity = min(capacity, 1728)
        # A warp gets registers in units of 256, of 65536.
        blocks = 65536 // (-(-usage.registers * 32 // 256) * 256 * warps)
        assert capacity <= rows * blocks * MULTIPROCESSORS[usage.architecture], (name, usage)
        found.add((name, usage.architecture))
    assert len(found) == 2 * 3 * 4 * 3  # directions, architectures, kinds, sizes
