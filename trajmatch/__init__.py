"""Trajectory-matching dataset distillation: exact unrolled gradients, one file as the result.

Importing this package is cheap: the names below, and torch with them, are loaded when they are
first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "artifact",
    "data",
    "distill",
    "errors",
    "evaluate",
    "experts",
    "networks",
    "ops",
    "reference",
)
_NAMES = {"load": "artifact", "UserError": "errors"}  # public name: the module that defines it

__all__ = ["UserError", "__version__", "load", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
