"""A problem: everything about one call, as plain values that a seed draws and that a report can print."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random

MODULES = ("rnn", "cell")
FUNCTIONS = ("sequence", "step")
OPERATORS = ("op_sequence", "op_step")
BACKWARDS = ("op_sequence_backward", "op_step_backward")
STACKS = ("rnn", "op_sequence", "op_sequence_backward")  # targets that have layers and directions
STEPS = ("cell", "step", "op_step", "op_step_backward")  # targets that take one step

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
INPUTS = ("x", "hx", *WEIGHTS)

LAYOUTS = ("strided", "transposed", "offset", "expanded", "negative", "parameter")
RARE_LAYOUTS = ("sparse", "csr", "mkldnn", "zerotensor", "subclass", "duck", "inference")
RETURNED = (("output", "expanded"), ("hidden", "expanded"))  # what no forward pass has returned
CHANGES = (
    *("one more dimension", "one dimension less", "size + 1", "size - 1", "size 0", "size 1"),
    *("float64", "float32", "bfloat16", "float16", "int64", "complex64", "meta"),
)
OBJECTS = ("none", "list", "array", "number", "text", "tuple")  # in place of a tensor
SIZES = (
    "empty",
    "a zero",
    "increasing",
    "sum too small",
    "sum too large",
    "int32",
    "2 dimensions",
    "negative",
    "meta",
)
SPECIAL = ("inf", "-inf", "nan", "huge", "subnormal", "zero", "all inf", "all nan", "all huge")
AROUND = (
    *("autocast", "deterministic", "anomaly", "doubling mode", "dispatch mode", "saved hooks"),
    *("default dtype", "device context", "halving mode", "profiler"),
)
CAPTURES = ("trace", "make_fx", "vmap", "jvp", "vjp", "double backward")
SLOW_CAPTURES = ("compile", "export")
ATTRIBUTES = {
    "mode": ("RNN_RELU", "RNN_TANH", "LSTM", "nonsense"),
    "nonlinearity": ("relu", "tanh", "sin"),
    "bias": (False, True),
    "batch_first": (True, False),
    "bidirectional": (True, False),
    "num_layers": (1, 2),
    "dropout": (0.0, 1.0),
    "input_size": (1, 3),
    "hidden_size": (1, 3),
    "proj_size": (1, 0),
}


@dataclass(frozen=True)
class Problem:
    """The defaults are the simplest problem of all; a report names what differs from them."""

    seed: int = 0  # of the numbers in the tensors
    target: str = "rnn"
    steps: int = 1
    batch: int = 1
    inputs: int = 1
    hidden: int = 1
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    unbatched: bool = False
    bias: bool = True
    nonlinearity: str = "tanh"
    reverse: bool = False
    dropout: float = 0.0
    lengths: tuple[int, ...] = ()  # of packed sequences, longest first
    shuffled: bool = False  # packed in another order
    hx: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = "auto"
    instruction_set: str = ""  # "" stands for the newest
    threads: int = 1
    mode: str = "grad"  # or "no_grad", "inference"
    requires: tuple[str, ...] = INPUTS  # the tensors that require a gradient
    used: tuple[str, ...] = ("output", "h_n")  # the results that a backward pass begins with
    gradient: str = "dense"  # or "sum" (expanded from one number), "strided"
    twice: bool = False  # the backward pass, with retain_graph
    touched: str = ""  # the tensor that is changed in place before the backward pass
    layouts: tuple[tuple[str, str], ...] = ()
    wrong: tuple[tuple[str, str], ...] = ()
    special: tuple[tuple[str, str], ...] = ()
    attribute: tuple[tuple[str, object], ...] = ()
    around: str = ""
    capture: str = ""
    later: tuple[int, int, str] = (1, 1, "float32")  # steps, batch and dtype of the call of what was captured

    def text(self) -> str:
        given = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "target" or value != field.default:
                given.append(f"{field.name}={value!r}")
        return f"Problem({', '.join(given)})"


def _size(r: Random, zero: float, few: int, more: tuple[int, ...]) -> int:
    dice = r.random()
    if dice < zero:
        return 0
    return r.randint(1, few) if dice < 0.85 else r.choice(more)


def draw(seed: int) -> Problem:
    """The problem of a seed: mostly one that torch takes, one in four with something out of the ordinary."""
    r = Random(seed)
    target = r.choices((*MODULES, *FUNCTIONS, *OPERATORS, *BACKWARDS), weights=(30, 16, 16, 10, 7, 6, 8, 7))[
        0
    ]
    one_step = target in STEPS
    sequence = target in ("sequence", "op_sequence", "op_sequence_backward")
    p = {
        "seed": seed,
        "target": target,
        "steps": 1 if one_step else _size(r, 0.01, 4, (5, 7, 12)),
        "batch": _size(r, 0.03, 6, (8, 9, 17, 33)),
        "inputs": _size(r, 0.02, 9, (16, 17, 33, 70)),
        "hidden": _size(r, 0.02, 12, (15, 16, 17, 31, 33, 48, 65, 100)),
        "bias": r.random() < 0.8,
        "nonlinearity": r.choice(("tanh", "relu")),
        "dtype": r.choices(("float32", "float64", "bfloat16", "float16"), weights=(5, 2, 2, 2))[0],
        "backend": r.choices(("auto", "cpu", "eager", "aten"), weights=(8, 6, 1, 1))[0],
        "threads": r.choices((1, 2, 3, 4), weights=(6, 3, 1, 1))[0],
        "mode": r.choices(("grad", "no_grad", "inference"), weights=(8, 1, 1))[0],
        "hx": target not in MODULES or r.random() < 0.6,
        "gradient": r.choice(("dense", "sum", "strided")),
        "twice": r.random() < 0.1,
    }
    if r.random() < 0.3:
        p["instruction_set"] = r.choice(("baseline", "avx2", "avx512", "avx512bf16"))
    if r.random() < 0.04:  # large enough for several threads
        p.update(steps=1 if one_step else r.randint(4, 12), batch=r.choice((1, 4, 16, 40, 64)))
        p.update(inputs=r.choice((8, 100)), hidden=r.choice((64, 96, 130, 200)), threads=r.randint(1, 4))
    if target in STACKS:
        p.update(layers=r.choice((1, 1, 1, 1, 2, 3)), bidirectional=r.random() < 0.25)
    if target == "rnn":
        p.update(batch_first=r.random() < 0.3)
        p.update(dropout=r.choice((0.0, 0.0, 0.0, 0.5, 1.0)) if p["layers"] > 1 else 0.0)
    if sequence:
        p.update(reverse=r.random() < 0.4 and not p.get("bidirectional"))
    if target in MODULES:
        p.update(unbatched=r.random() < 0.12)
    if (target == "rnn" or sequence) and not p.get("unbatched") and r.random() < 0.25:
        count = max(1, p["batch"])
        lengths = sorted((r.randint(1, max(1, p["steps"])) for _ in range(count)), reverse=True)
        p.update(lengths=tuple(lengths), batch=count, steps=lengths[0])
        p.update(shuffled=target == "rnn" and r.random() < 0.5)
    present = [n for n in INPUTS if (p["hx"] or n != "hx") and (p["bias"] or "bias" not in n)]
    if r.random() < 0.4:
        p["requires"] = tuple(n for n in present if r.random() < 0.5)
    else:
        p["requires"] = tuple(present)
    if not one_step and r.random() < 0.3:
        p["used"] = (r.choice(("output", "h_n")),)
    if target in BACKWARDS:
        p.update(mode="no_grad", twice=False, device="cpu")
        present += ["output", *(f"grad_{name}" for name in (("output",) if one_step else ("output", "h_n")))]
        present += ["hidden"] if p.get("layers", 1) > 1 else []
    _unusual(r, p, present)
    return Problem(**p)


def _unusual(r: Random, p: dict, present: list[str]) -> None:
    """Adds what torch may reject, or what a kernel may not expect."""
    target = p["target"]
    movable = [n for n in present if n != "x" or not p.get("lengths") or target != "rnn"]
    if r.random() < 0.3:
        layouts = tuple((n, r.choice(LAYOUTS)) for n in movable if r.random() < 0.3)
        p["layouts"] = tuple(entry for entry in layouts if entry not in RETURNED)
    dice = r.random()
    if dice < 0.03 and movable:
        p["layouts"] = (
            (r.choice([n for n in movable if n not in ("output", "hidden")]), r.choice(RARE_LAYOUTS)),
        )
        if p["layouts"][0][1] == "duck" and target not in (*MODULES, *FUNCTIONS):
            p["layouts"] = ()  # operators take tensors
        if p["layouts"] == (("x", "inference"),) and p.get("reverse"):
            p["layouts"] = ()  # torch reverses a copy, which is an ordinary tensor
    elif dice < 0.14:
        name = r.choice(present + (["batch_sizes"] if p.get("lengths") else []))
        if name == "batch_sizes":
            change = r.choice(SIZES)
        elif target in MODULES and name in WEIGHTS:
            change = r.choice(CHANGES)
        else:
            change = r.choice((*CHANGES, *CHANGES, *OBJECTS))
        p["wrong"] = ((name, change),)
    elif dice < 0.22:
        names = r.sample(present, min(len(present), r.choice((1, 1, 2))))
        p["special"] = tuple((name, r.choice(SPECIAL)) for name in names)
    elif dice < 0.25 and target in MODULES:
        attribute = r.choice(list(ATTRIBUTES))
        p["attribute"] = ((attribute, r.choice(ATTRIBUTES[attribute])),)
    elif dice < 0.29:
        p["around"] = r.choices(AROUND, weights=(4, 4, 1, 4, 2, 2, 2, 2, 4, 0.3))[0]
        if p["around"] == "doubling mode" and p["backend"] not in ("auto", "aten"):
            p["around"] = "dispatch mode"  # what was asked for by name is not torch's operator
        if p["around"] in ("autocast", "doubling mode") and target not in (*MODULES, *FUNCTIONS):
            p["around"] = (
                "dispatch mode"  # autocast and the modes of functions are for those above the operators
            )
    elif dice < 0.32 and target not in BACKWARDS and not p.get("reverse"):  # torch reverses a copy
        p["touched"] = r.choice(present)
    elif dice < 0.34 and target not in BACKWARDS:
        _captured(r, p)
    elif dice < 0.35:
        p.update(device="meta")
    elif dice < 0.36:
        p.update(dtype=r.choice(("complex64", "complex128", "int64", "bool")))


def _captured(r: Random, p: dict) -> None:
    slow = r.random() < 0.015
    p["capture"] = r.choice(SLOW_CAPTURES) if slow else r.choices(CAPTURES, weights=(4, 1, 1, 1, 1, 1))[0]
    if p["target"] in OPERATORS and p["capture"] in CAPTURES[2:]:
        p["capture"] = "trace"
    p.update(twice=False, layouts=(), dropout=0.0, mode="grad")
    if p["capture"] in ("vmap", "jvp", "vjp"):
        p.update(lengths=(), shuffled=False)
    later = (p["steps"], p["batch"], p["dtype"])
    if p["capture"] in ("trace", "make_fx", *SLOW_CAPTURES):
        p.update(shuffled=False)
        if p["capture"] == "make_fx":
            p.update(hx=True)  # the zeros in its place would be of the first call's batch
        dice = r.random()
        if dice < 0.5 and p["capture"] != "export":
            steps = p["steps"] if p["target"] in STEPS else r.randint(1, 6)
            later = (steps, r.randint(1, 6), p["dtype"])
        elif dice < 0.6:
            later = (*later[:2], r.choice(("float32", "float64", "bfloat16", "float16")))
    p["later"] = later
