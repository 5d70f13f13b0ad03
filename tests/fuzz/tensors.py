"""The tensors of a problem: the numbers in float64, and how each side of a comparison gets them."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problem import STACKS, STEPS, Problem

Shape = tuple[int, ...]

NEGATED = (
    torch.float32,
    torch.float64,
)  # the dtypes of which there are views that torch negates when it reads them


class Subclass(torch.Tensor):
    """A subclass that changes nothing."""


class Duck:
    """No tensor at all, but torch's functions take it: they find the tensor in it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(plain(v) for v in value)
            return value.tensor if isinstance(value, Duck) else value

        return function(*plain(args), **{k: plain(v) for k, v in (kwargs or {}).items()})


def rows_of(p: Problem) -> Shape:
    """What the first dimensions of x and of output are, in the order that functions have."""
    if p.target in STEPS:
        return (p.batch,)
    return (sum(p.lengths),) if p.lengths else (p.steps, p.batch)


def layer_weights(p: Problem) -> list[tuple[str, Shape]]:
    """Names and shapes of a module's parameters, which an operator has, too, or of a function's weights."""
    h = p.hidden
    if p.target not in STACKS:
        first = [("weight_ih", (h, p.inputs)), ("weight_hh", (h, h)), ("bias_ih", (h,)), ("bias_hh", (h,))]
        return [(n, s) for n, s in first if p.bias or "bias" not in n]
    directions = 2 if p.bidirectional else 1
    found: list[tuple[str, Shape]] = []
    for layer in range(p.layers):
        width = p.inputs if layer == 0 else h * directions
        for suffix in ("", "_reverse")[:directions]:
            names = [f"{kind}_l{layer}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            shapes: list[Shape] = [(h, width), (h, h), (h,), (h,)]
            found += [(n, s) for n, s in zip(names, shapes, strict=True) if p.bias or "bias" not in n]
    return found


def short_name(name: str) -> str:
    """The name in `problem.WEIGHTS` of a parameter of the first layer, else the parameter's own."""
    return name.removesuffix("_l0") if name.endswith("_l0") else name


def shapes_of(p: Problem) -> dict[str, Shape]:
    rows = rows_of(p)
    batch: Shape = (p.batch,)
    if p.unbatched:
        rows, batch = rows[:-1], ()
    x = (*rows, p.inputs)
    if p.target == "rnn" and p.batch_first and len(x) == 3:
        x = (x[1], x[0], x[2])
    leading = (p.layers * (2 if p.bidirectional else 1),) if p.target in STACKS else ()
    shapes: dict[str, Shape] = {"x": x}
    if p.hx:
        shapes["hx"] = (*leading, *batch, p.hidden)
    shapes.update(layer_weights(p))
    return shapes


def numbers(p: Problem) -> dict[str, Tensor]:
    """Every tensor in float64. W_hh contracts, so that errors do not grow from step to step."""
    result = {}
    for name, shape in shapes_of(p).items():
        result[name] = _normal(p, name, shape)
        if "weight_hh" in name:
            result[name] *= 0.9 / result[name].norm().clamp(min=1.0)
        elif "weight_ih" in name:
            result[name] /= 2 * max(1, shape[-1]) ** 0.5
        elif "bias" in name and p.nonlinearity == "relu":
            # relu's derivative jumps at 0: most units are kept away from it.
            side = torch.where(torch.arange(shape[0]) % 2 == 0, 1.0, -1.0)
            result[name] = result[name] / 4 + side
        elif name == "hx":
            result[name].tanh_()
        _make_special(p, short_name(name), result[name])
    return result


def _normal(p: Problem, name: str, shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(p.seed * 1009 + zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-3, 3)


def gradient_numbers(p: Problem, name: str, shape: Shape) -> Tensor:
    result = (
        torch.ones(shape, dtype=torch.float64) if p.gradient == "sum" else _normal(p, f"grad_{name}", shape)
    )
    _make_special(p, f"grad_{name}", result)
    return result


def _make_special(p: Problem, name: str, tensor: Tensor) -> None:
    for which, kind in p.special:
        if which != name or tensor.numel() == 0:
            continue
        dtype = dtype_of(p.dtype)
        limits = torch.finfo(dtype if dtype.is_floating_point else torch.float32)
        if kind == "subnormal":
            tensor *= limits.tiny / 8
        elif kind == "zero":
            tensor.zero_()
        else:
            # Where all are huge, their squares and sums are still within the range of the dtype.
            huge = limits.max**0.5 / 16 if kind == "all huge" else limits.max * 0.75
            value = huge if "huge" in kind else float(kind.removeprefix("all "))
            at = slice(None) if kind.startswith("all") else p.seed % tensor.numel()
            tensor.view(-1)[at] = value


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def side(p: Problem, data: dict[str, Tensor], dtype: torch.dtype, exact: bool = False) -> dict[str, Any]:
    """The arguments in `dtype`, changed and laid out as the problem says.

    If `exact`, they are for the truth: dense, and of that dtype whatever the problem does to dtypes.
    """
    result: dict[str, Any] = {}
    layouts, wrong = dict(p.layouts), dict(p.wrong)
    for name, numbers_ in data.items():
        short = short_name(name)
        # A copy always: what one side does to its tensors in place is not the other's.
        tensor: Any = numbers_.to(dtype, copy=True) if p.device == "cpu" else numbers_.to(p.device, dtype)
        if short in wrong:
            tensor = _changed(tensor, wrong[short], exact)
        layout = layouts.get(short)
        if layout is not None and isinstance(tensor, Tensor):
            tensor = _laid_out(tensor, layout, exact)
        if short in p.requires or (
            short not in INPUT_NAMES and name.startswith(("weight", "bias")) and p.requires
        ):
            tensor = _requiring_grad(tensor)
        result[name] = tensor
    if p.lengths:
        result["batch_sizes"] = batch_sizes_of(p)
    return result


INPUT_NAMES = ("x", "hx", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
INPUT_NAMES += ("output", "hidden", "grad_output", "grad_h_n")


def _requiring_grad(tensor: Any) -> Any:
    if isinstance(tensor, Duck):
        tensor.tensor = _requiring_grad(tensor.tensor)
    elif isinstance(tensor, Tensor) and not tensor.is_inference():
        tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())
    return tensor


def _changed(tensor: Tensor, change: str, exact: bool) -> Any:
    dims = tensor.dim()
    if change == "one more dimension":
        return tensor.unsqueeze(0)
    if change == "one dimension less":
        return tensor[0] if dims and tensor.shape[0] else tensor.reshape(-1)
    if change.startswith("size"):
        if dims == 0:
            return tensor
        dim = dims - 1 if "1" in change and tensor.shape[-1] % 2 else 0
        wanted = {
            "size + 1": tensor.shape[dim] + 1,
            "size - 1": tensor.shape[dim] - 1,
            "size 0": 0,
            "size 1": 1,
        }
        shape = list(tensor.shape)
        shape[dim] = max(0, wanted[change])
        new = tensor.new_zeros(shape)
        kept = min(shape[dim], tensor.shape[dim])
        new.narrow(dim, 0, kept).copy_(tensor.narrow(dim, 0, kept))
        return new
    objects: dict[str, Callable[[], Any]] = {
        "none": lambda: None,
        "list": lambda: tensor.tolist(),
        "array": lambda: tensor.float().numpy(),
        "number": lambda: 1.0,
        "text": lambda: "tensor",
        "tuple": lambda: (tensor, tensor),
    }
    if change in objects:
        return objects[change]()
    if change == "meta":
        return tensor.to("meta")
    return tensor if exact else tensor.to(dtype_of(change))


def _laid_out(tensor: Tensor, layout: str, exact: bool) -> Any:
    """The tensor itself, or one with the same numbers; expanded, and zero, are other numbers."""
    if layout == "expanded":
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            return tensor
        return tensor[:1].expand(tensor.shape) if not exact else tensor[:1].expand(tensor.shape).contiguous()
    if layout == "zerotensor" and tensor.device.type == "cpu":
        return (
            torch.zeros_like(tensor)
            if exact
            else torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)
        )
    if exact:
        return tensor
    if layout == "strided":
        return torch.stack([tensor, tensor], -1).select(-1, 0)
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else tensor
    if layout == "offset":
        return torch.cat([tensor.new_ones(1), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "negative":  # lazily, as torch makes it
        return torch.complex(tensor, -tensor).conj().imag if tensor.dtype in NEGATED else tensor
    if layout == "parameter":
        return torch.nn.Parameter(tensor, tensor.is_floating_point())
    if layout == "subclass":
        return tensor.as_subclass(Subclass)
    if layout == "duck":
        return Duck(tensor)
    if layout == "inference":
        with torch.inference_mode():
            return tensor.clone()
    if layout == "mkldnn" and (tensor.dtype is not torch.float32 or tensor.numel() == 0):
        return tensor
    if layout == "csr" and tensor.dim() != 2:
        return tensor
    if layout == "csr":
        warnings.simplefilter("ignore")  # it is in beta state
    convert = {"sparse": Tensor.to_sparse, "csr": Tensor.to_sparse_csr, "mkldnn": Tensor.to_mkldnn}
    return convert[layout](tensor)


def batch_sizes_of(p: Problem) -> Any:
    """[T] int64, or what a problem has made of it."""
    sizes = [sum(n > t for n in p.lengths) for t in range(p.lengths[0])]
    change = dict(p.wrong).get("batch_sizes")
    if change == "empty":
        sizes = []
    elif change == "a zero":
        sizes.append(0)
    elif change == "increasing":
        sizes = [1, sum(sizes)]
    elif change == "sum too small":
        sizes[-1] -= 1
    elif change == "sum too large":
        sizes[0] += 1
    elif change == "negative":
        sizes = [*sizes, 1, -1]
    result = torch.tensor(sizes, dtype=torch.int32 if change == "int32" else torch.int64)
    if change == "2 dimensions":
        result = result.unsqueeze(0)
    return result.to("meta") if change == "meta" else result
