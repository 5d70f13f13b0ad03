"""One problem in one mode: what a cell of a result file is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Layers and directions of a stack.
STACKS = {"bidirectional": (2, 2), "2layers": (2, 1), "4layers": (4, 1)}


@dataclass(frozen=True)
class Case:
    """T = steps, B = batch, I = input_size, H = hidden_size."""

    steps: int
    batch: int
    input_size: int
    hidden_size: int
    training: bool = False  # forward and backward; gradients of all parameters, none of the input
    kind: str = "sequence"  # or "step": one RNNCell call
    layout: str = "dense"  # or "packed" (lengths from T/4 to T), or a key of STACKS
    nonlinearity: str = "tanh"
    dtype: str = "float32"
    threads: int = 2
    device: str = "cpu"
    tf32: bool = False  # on CUDA, whether float32 products may round their operands to TF32

    def __post_init__(self) -> None:
        if self.tf32 and self.dtype != "float32":
            raise ValueError(f"TF32 is a way to multiply float32, not {self.dtype}")

    @property
    def packed(self) -> bool:
        return self.layout == "packed"

    @property
    def directions(self) -> int:
        return STACKS.get(self.layout, (1, 1))[1]

    @property
    def layers(self) -> int:
        return STACKS.get(self.layout, (1, 1))[0]

    @property
    def mode(self) -> str:
        return "training" if self.training else "forward"

    @property
    def shape(self) -> str:
        """The case without mode: what pytest-benchmark groups by and tables print."""
        sizes = f"T{self.steps} B{self.batch} I{self.input_size} H{self.hidden_size}"
        unusual = [self.kind, self.layout, self.nonlinearity, self.dtype]
        usual = ("sequence", "dense", "tanh", "float32")
        words = [word for word, plain in zip(unusual, usual, strict=True) if word != plain]
        words += ["tf32"] * self.tf32 + [self.device] * (self.device != "cpu")
        return " ".join([sizes, *words, f"{self.threads}thr"])

    @property
    def key(self) -> str:
        return f"{self.shape} {self.mode}"

    @property
    def rows(self) -> float:
        """Rows that are computed, padding not counted: lengths of a packed case average 5/8 T."""
        return self.steps * self.batch * (5 / 8 if self.packed else 1)

    @property
    def flops(self) -> float:
        """Additions and multiplications of the matrix products; the activation is not counted."""
        total = 0.0
        for layer in range(self.layers):
            width = self.input_size if layer == 0 else self.hidden_size * self.directions
            products = width + self.hidden_size  # x W_ih^T, h W_hh^T
            if self.training:
                products += width + 2 * self.hidden_size  # dW_ih; dh and dW_hh
                products += width if layer > 0 else 0  # the gradient of the layer below
            total += self.directions * 2.0 * self.rows * products * self.hidden_size
        return total

    def to_dict(self) -> dict:
        return asdict(self)
