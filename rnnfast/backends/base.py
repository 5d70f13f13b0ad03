"""The contract that every backend fulfils.

A backend runs a `Call`: a stack of layers, each in one or two directions, or a single step. Its tensors have
one dtype and device, are contiguous, and have shapes that fit. A backend knows nothing of autograd, modules
or the checking of arguments. One that knows only layers supplies `layer_*` and `step_*`, of which the base
class makes stacks.

The only thing saved for backward are outputs, those of all layers, because every activation can be
differentiated from its value f: tanh' = 1 - f^2, relu' = [f > 0], sigmoid' = f (1 - f), softplus' =
1 - exp(-f). Leaky and continuous-time cells have `inner` beside their outputs. Of the other tensors a
backward pass may read what the wanted gradients need and no more (`read_by`). The others are None in a call;
a layer has in their place something of the right shape, but without memory behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from ..call import Call, Network, dense_gradient, extras
from ..layer import Grads, Layer, Needs


@dataclass(frozen=True)
class Problem:
    """What dispatch needs to know to choose a backend. Sizes are plain ints."""

    kind: str  # "step" or "sequence"
    device: str  # device type: "cpu", "cuda", ...
    dtype: str  # "float32", "float64", "bfloat16", "float16", ...
    input_size: int  # I
    hidden_size: int  # H
    batch: int  # B
    steps: int  # T (1 for a step)
    packed: bool = False
    layers: int = 1  # L
    directions: int = 1  # D
    grad: bool = False  # whether a backward pass will follow
    deterministic: bool = False  # torch.are_deterministic_algorithms_enabled()
    tf32: bool = False  # whether float32 products on CUDA may round to TF32, see `precision`
    nonlinearity: str = "tanh"
    cell: str = "elman"
    noise: bool = False
    resets: bool = False

    @property
    def extras(self) -> str:
        """What it has that torch's operators don't know; empty if it is an RNN of theirs."""
        return extras(self.nonlinearity, self.cell, self.noise, self.resets)


class Outputs(NamedTuple):
    """What a backward pass has beside a call: outputs of the forward pass, and their gradients.

    A gradient may have any layout, and None stands for zeros. That of `hidden` is there in a double backward
    pass alone, and so is that of a leaky cell's `inner`; that of a continuous-time cell's comes from whoever
    uses v.
    """

    out: Tensor  # like x but for its last dimension, D * H
    hidden: Optional[Tensor]  # [L - 1, R, D * H]: the outputs of all layers but the last; None of one layer
    grad_out: Optional[Tensor]  # like out
    grad_hn: Optional[Tensor]  # like h0
    grad_hidden: Optional[Tensor] = None  # like hidden
    inner: Optional[Tensor] = None  # [L, R, D * H]: leaky f(a), ctrnn v, of all layers; None of elman
    grad_inner: Optional[Tensor] = None  # like inner


@lru_cache(maxsize=256)
def lowest_layer(network: Network, needs: tuple[bool, ...]) -> int:
    """The lowest layer that a backward pass has to walk; L if there is none."""
    if needs[0] or needs[1]:
        return 0
    each = len(network.reverse) * network.per
    wanted = [any(needs[2 + i * each : 2 + (i + 1) * each]) for i in range(network.layers)]
    return wanted.index(True) if True in wanted else network.layers


@lru_cache(maxsize=256)
def read_by(network: Network, needs: tuple[bool, ...], recurrent: bool) -> tuple[bool, ...]:
    """Which of x, h0 and the weights a backward pass reads.

    dx of a layer reads its W_ih, dW_ih its input, dW_hh h0, and dh0 W_hh, as does every walk of more than one
    step (`recurrent`). dalpha of a leaky cell reads h0. That of a continuous-time cell computes a_t anew, of
    the layer's input and all its weights, and dh0 reads h0. Outputs are always read. What torch's operators
    save differs in nothing but outputs.
    """
    lowest, directions, per = lowest_layer(network, needs), len(network.reverse), network.per
    weights, parts = needs[2:], network.parts
    leaky, ctrnn = network.cell == "leaky", network.cell == "ctrnn"
    # Of each layer and direction, which of its weights have gradients.
    wanted = [dict(zip(parts, weights[i : i + per], strict=True)) for i in range(0, len(weights), per)]
    again = [ctrnn and each["alpha"] for each in wanted]  # whether a_t is computed anew
    x = any(each["weight_ih"] for each in wanted[:directions]) or any(again[:directions])
    h0 = any(each["weight_hh"] or ((leaky or ctrnn) and each["alpha"]) for each in wanted)
    read = [x, h0 or (ctrnn and needs[1])]
    for i in range(len(weights)):
        layer, part = i // per // directions, parts[i % per]
        walked, anew = layer >= lowest, again[i // per]
        if part == "weight_ih":
            read.append(anew or layer > lowest or (layer == 0 and needs[0]))
        elif part == "weight_hh":
            read.append(anew or (walked and (recurrent or needs[1])))
        else:
            read.append((anew and part != "noise") or (part == "alpha" and walked))
    return tuple(read)


class Backend:
    """Base class. A new backend is one file with one subclass and one entry in `dispatch`."""

    name: str = ""

    def unavailable(self) -> Optional[str]:
        """Why this backend cannot run on this machine at all, or None when it can."""
        raise NotImplementedError

    def details(self) -> str:
        """What `rnnfast.show_config` adds to the name of an available backend, as its instruction set."""
        return ""

    def refuses(self, problem: Problem) -> Optional[str]:
        """Why this backend cannot run `problem`, or None when it can."""
        raise NotImplementedError

    def measured(self) -> bool:
        """Whether this machine's device is of the kind that `dispatch.FASTER` was measured on."""
        return True

    def forward(self, call: Call) -> tuple[Tensor, ...]:
        """Computes a call.

        Returns:
            ``(out,)`` of a step, else ``(out, h_n)``, of several layers ``hidden``, and of a leaky or
            continuous-time cell ``inner``; see `Outputs`. h_n is like h0.
        """
        return tuple(result.data for result in self.forward_layers(call))  # autograd takes no views

    def infer(self, call: Call) -> tuple[Tensor, ...]:
        """`forward` where nothing but output and h_n is wanted; what else it returns may be missing."""
        return self.forward(call)

    def forward_layers(self, call: Call) -> tuple[Tensor, ...]:
        """`forward`, in operators that torch can differentiate if `layer_forward` is."""
        network = call.network
        states, shape = _states(call, call.x), (*call.x.shape[:-1], len(network.reverse) * call.hidden_size)
        rows = call.x.reshape(call.rows, call.input_size)
        if network.step:
            return (self.step_forward(_layer(call, 0, rows, states)).reshape(shape),)
        outputs: list[Tensor] = []
        last: list[Tensor] = []
        inners: list[Tensor] = []
        for first in range(0, len(states), len(network.reverse)):
            walks = [
                self.layer_forward(_layer(call, first + d, rows, states)) for d in range(len(network.reverse))
            ]
            rows = _side_by_side([out for out, _, _ in walks])
            outputs.append(rows)
            last += [h_n for _, h_n, _ in walks]
            if network.cell != "elman":
                inners.append(_side_by_side([inner for _, _, inner in walks if inner is not None]))
        h_n = last[0] if len(last) == 1 else torch.stack(last)
        hidden = (torch.stack(outputs[:-1]),) if network.layers > 1 else ()
        inner = (torch.stack(inners),) if inners else ()
        return rows.reshape(shape), h_n.reshape(state_shape(call, call.x)), *hidden, *inner

    def backward(self, call: Call, outputs: Outputs, needs: tuple[bool, ...]) -> tuple[Optional[Tensor], ...]:
        """Computes the gradients of x, h0 and each weight, where `needs` says so; else they are None.

        Raises:
            RuntimeError: an output or gradient is not what the forward pass of this call had.
        """
        outputs = _looked_at(call, outputs)
        network, directions = call.network, len(call.network.reverse)
        per, count, hidden_size = network.per, network.layers * directions, call.hidden_size
        top = outputs.out.reshape(call.rows, directions * hidden_size)
        outs = [top] if outputs.hidden is None else [*outputs.hidden, top]
        x = _filled(call.x, outputs.out, (*outputs.out.shape[:-1], call.input_size))
        ins = [x.reshape(call.rows, call.input_size), *outs[:-1]]
        states = _states(call, outputs.out)
        grads_hn: Sequence[Optional[Tensor]] = [None] * count
        if outputs.grad_hn is not None:
            grads_hn = _each(outputs.grad_hn, call)
        dstates: list[Optional[Tensor]] = [None] * count
        dweights: list[Optional[Tensor]] = [None] * len(call.weights)
        grad = None if outputs.grad_out is None else outputs.grad_out.reshape(outs[-1].shape)
        lowest = lowest_layer(network, needs)
        for layer in reversed(range(lowest, network.layers)):
            dx: Optional[Tensor] = None
            for d in range(directions):
                i = layer * directions + d
                flags = dict(zip(network.parts, needs[2 + i * per : 2 + (i + 1) * per], strict=True))
                wanted = Needs(
                    x=needs[0] if layer == 0 else layer > lowest,
                    h0=needs[1],
                    weight_ih=flags["weight_ih"],
                    weight_hh=flags["weight_hh"],
                    bias=flags.get("bias_ih", False) or flags.get("bias_hh", False),
                    alpha=flags.get("alpha", False),
                    noise=flags.get("noise", False),
                )
                given = _layer(call, i, ins[layer], states)
                given = given._replace(
                    weight_ih=_filled(given.weight_ih, outs[0], (hidden_size, ins[layer].shape[1])),
                    weight_hh=_filled(given.weight_hh, outs[0], (hidden_size, hidden_size)),
                )
                out, coming = _half(outs[layer], d, directions), _half(grad, d, directions)
                if network.step:
                    found = self.step_backward(given, out, coming, wanted)
                else:
                    inner, to_inner = (
                        None if rows is None else _half(rows[layer], d, directions)
                        for rows in (outputs.inner, outputs.grad_inner)
                    )
                    found = self.layer_backward(given, out, inner, coming, grads_hn[i], to_inner, wanted)
                dstates[i] = found.h0
                if found.x is not None:
                    dx = found.x if dx is None else dx + found.x
                dweights[i * per : (i + 1) * per] = _of_weights(found, flags)
            grad = dx
            if layer > 0 and outputs.grad_hidden is not None:
                below = outputs.grad_hidden[layer - 1]
                grad = below if grad is None else grad + below
        dh0 = None
        if needs[1]:
            found_states = [state for state in dstates if state is not None]
            dh0 = found_states[0] if count == 1 else torch.stack(found_states)
            dh0 = dh0.reshape(state_shape(call, outputs.out))
        return None if not needs[0] or grad is None else grad.reshape(x.shape), dh0, *dweights

    def layer_forward(self, layer: Layer) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Computes one layer in one direction.

        Returns:
            out ``[R, H]``, h_n ``[B, H]`` and inner ``[R, H]``: leaky f(a), ctrnn v; None of an elman cell.
        """
        raise NotImplementedError

    def layer_backward(
        self,
        layer: Layer,
        out: Tensor,  # [R, H], what layer_forward returned
        inner: Optional[Tensor],  # [R, H], what layer_forward returned
        grad_out: Optional[Tensor],  # [R, H]; None stands for zeros
        grad_hn: Optional[Tensor],  # [B, H]; None stands for zeros
        grad_inner: Optional[Tensor],  # [R, H]; None stands for zeros
        needs: Needs,
    ) -> Grads:
        raise NotImplementedError

    def step_forward(self, layer: Layer) -> Tensor:  # [B, H]
        """One step, of x [B, I]."""
        raise NotImplementedError

    def step_backward(
        self,
        layer: Layer,
        out: Tensor,  # [B, H], what step_forward returned
        grad: Optional[Tensor],  # [B, H]; None stands for zeros
        needs: Needs,
    ) -> Grads:
        raise NotImplementedError


def _looked_at(call: Call, outputs: Outputs) -> Outputs:
    """Dense and checked: gradients have any layout, and hooks of users bring saved tensors back."""
    network, (_, device, dtype, *_) = call.network, call.problem
    width, out = len(network.reverse) * call.hidden_size, outputs.out
    shape = out.shape if out.dim() and out.shape[-1] == width and out.numel() == call.rows * width else None
    hidden = network.layers - 1, call.rows, width
    inner = network.layers, call.rows, width
    shapes = shape, hidden, shape, state_shape(call, out), hidden, inner, inner
    for name, tensor, expected in zip(Outputs._fields, outputs, shapes, strict=True):
        if tensor is not None and (
            tensor.shape != expected or tensor.dtype is not dtype or tensor.device != device
        ):
            raise RuntimeError(
                f"{name} is not what the forward pass of this call had: its shape, dtype or device differs"
            )
    return Outputs(*map(dense_gradient, outputs))


def state_shape(call: Call, like: Tensor) -> tuple[int, ...]:
    """That of h0 and h_n; `like` has as many dimensions as x."""
    network = call.network
    batch = () if call.batch_sizes is None and like.dim() == (1 if network.step else 2) else (call.batch,)
    if network.step or not network.module:
        return (*batch, call.hidden_size)
    return network.layers * len(network.reverse), *batch, call.hidden_size


def _each(states: Tensor, call: Call) -> Sequence[Any]:
    """The states of each layer and direction, [B, H]."""
    count = call.network.layers * len(call.network.reverse)
    if count == 1:
        return (states.reshape(call.batch, call.hidden_size),)
    return states.reshape(count, call.batch, call.hidden_size).unbind(0)


def _states(call: Call, like: Tensor) -> Sequence[Any]:
    if call.h0 is not None:
        return _each(call.h0, call)
    zeros = like.new_zeros(call.batch, call.hidden_size)
    return (zeros,) * (call.network.layers * len(call.network.reverse))


def _layer(call: Call, i: int, x: Any, states: Sequence[Any]) -> Layer:
    """Layer and direction `i` of a call, with its input, [R, I]."""
    network = call.network
    weights = call.weights[i * network.per : (i + 1) * network.per]
    weight_ih, weight_hh, *rest = weights
    bias_ih, bias_hh, *rest = rest if network.biases else (None, None, *rest)
    walk = network.nonlinearity, call.batch_sizes, network.reverse[i % len(network.reverse)], network.cell
    alpha = rest[0] if network.cell != "elman" else None
    noise = rest[-1] if network.noise else None
    return Layer(x, states[i], weight_ih, weight_hh, bias_ih, bias_hh, *walk, alpha, noise, call.resets)


def _filled(tensor: Optional[Tensor], like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`tensor` or, if it is None, something of that shape without memory."""
    return like.new_empty(()).expand(shape) if tensor is None else tensor


def _side_by_side(rows: list[Tensor]) -> Tensor:
    """The columns of each direction."""
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)


def _half(rows: Any, direction: int, directions: int) -> Any:
    """The columns of one direction."""
    if rows is None or directions == 1:
        return rows
    width = rows.shape[1] // directions
    return rows[:, direction * width : (direction + 1) * width].contiguous()


def _of_weights(grads: Grads, needs: dict[str, bool]) -> list[Optional[Tensor]]:
    """One gradient for each weight of a layer, by `Network.parts`.

    The biases' gradients are equal, but must not share memory: a caller may write to one of them.
    """
    found = grads._asdict()
    found["bias_ih"] = found["bias_hh"] = grads.bias
    if grads.bias is not None and needs["bias_ih"] and needs["bias_hh"]:
        found["bias_hh"] = grads.bias.clone()
    return [found[part] if needed else None for part, needed in needs.items()]
