"""The native code under sanitizers: `python -m tests.sanitize`."""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def use(path: str | Path) -> None:
    """Makes a build of the CPU extension the one that rnnfast will import."""
    name = "rnnfast._cpu"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
