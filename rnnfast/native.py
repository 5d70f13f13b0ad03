"""The native extension for the CPU, if it is built."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Optional

import torch

native: Any = None
MISSING: Optional[str] = None
try:
    native = import_module("rnnfast._cpu")
except ImportError as error:
    MISSING = f"the native extension is not built ({error}); install rnnfast where there is a C++ compiler"

# The dtypes that kernels have, in the order of `DType` in csrc/common.h.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
