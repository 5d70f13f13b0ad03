"""What a module says of itself, in attributes that anybody may set later, against the weights that it has.

torch hands these attributes to its operator in every call and lets that reject what doesn't fit. Our kernels
see only weights. So wherever something is at odds here, the call goes to torch's implementation, which obeys
or raises; to the text of its error the cause found here is added, as torch's own seldom names the attribute.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}  # by RNNBase.mode, which torch obeys
FLAGS = ("bias", "batch_first", "bidirectional", "training")
SIZES = ("num_layers", "hidden_size", "proj_size")

# Those of RNN that decide which kernel runs and on what, and those of LeakyRNN and CTRNN.
DESCRIBING = frozenset({"mode", "dropout", "input_size", *FLAGS, *SIZES})
DESCRIBING |= {"nonlinearity", "alpha", "noise_std", "noise_in_eval"}


def at_odds(module: torch.nn.RNNBase) -> Optional[str]:
    """Which attribute of an RNN doesn't describe its weights, or None where all do."""
    # With a default, so that a deleted one is at odds, too, rather than an error of this function.
    mode, dropout = getattr(module, "mode", None), getattr(module, "dropout", None)
    if not (isinstance(mode, str) and mode in NONLINEARITIES):
        return f"mode is {mode!r}"
    for name in FLAGS:
        flag = getattr(module, name, None)
        if not isinstance(flag, bool):
            return f"{name} is {flag!r}, not a bool"
    for name in SIZES:
        size = getattr(module, name, None)
        if not isinstance(size, int) or isinstance(size, bool):
            return f"{name} is {size!r}, not an int"
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool):
        return f"dropout is {dropout!r}, not a number"
    layers = module._all_weights  # the names of each layer's and direction's weights
    if len(layers) != module.num_layers * (2 if module.bidirectional else 1):
        return (
            f"num_layers is {module.num_layers} and bidirectional is {module.bidirectional},"
            f" but the number of weight_hh is {len(layers)}"
        )
    if len(layers[0]) != (4 if module.bias else 2):
        return f"bias is {module.bias}, but the weights are {', '.join(layers[0])}"
    for name in chain.from_iterable(layers):
        if module._parameters.get(name, module) is None:
            return f"{name} is None"
    if 0 < module.proj_size != module.hidden_size:
        return f"proj_size is {module.proj_size}"
    return None


def no_tensor(input: Any, hx: Any) -> Optional[str]:
    """Which of a module's arguments is not a tensor, nor anything that torch may take for one."""
    if not (isinstance(input, (Tensor, PackedSequence)) or _acts_as_tensor(input)):
        return f"input is of type {type(input).__name__}, not a Tensor"
    if not (hx is None or isinstance(hx, Tensor) or _acts_as_tensor(hx)):
        return f"hx is of type {type(hx).__name__}, not a Tensor"
    return None


def _acts_as_tensor(value: Any) -> bool:
    return hasattr(type(value), "__torch_function__")
