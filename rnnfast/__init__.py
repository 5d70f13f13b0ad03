"""Fused Elman RNNs for PyTorch: `rnnfast.RNN` is `torch.nn.RNN`, only faster."""

from . import flops, functional  # noqa: F401, flops adds its formulas to torch's
from .cell import RNNCell
from .config import explain, release_scratch, show_config
from .continuous import CTRNN, LeakyRNN
from .convert import convert, revert
from .modules import RNN
from .version import __version__

__all__ = [
    "CTRNN",
    "RNN",
    "LeakyRNN",
    "RNNCell",
    "__version__",
    "convert",
    "explain",
    "functional",
    "release_scratch",
    "revert",
    "show_config",
]
