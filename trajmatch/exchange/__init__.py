"""Files of other programs: the papers' scripts in and out, and formats that anything can read."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: the configurations are needed before, and without, PyTorch.
_NAMES = {
    "ConvertConfig": "config",
    "ExportConfig": "config",
    "convert": "conversion",
    "export": "exporting",
}

__all__ = ["ConvertConfig", "ExportConfig", "convert", "export"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
