"""Trajectory-matching dataset distillation: exact unrolled gradients, one file as the result.

Lazy import: the names below, and torch with them, are loaded at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    *("artifact", "data", "distill", "errors", "evaluate"),
    *("experts", "networks", "ops", "reference"),
)
_NAMES = {"load": "artifact", "UserError": "errors"}  # public name: the module that defines it
__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in (*_NAMES, *_MODULES):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_NAMES.get(name, name)}")
    return getattr(module, name) if name in _NAMES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
