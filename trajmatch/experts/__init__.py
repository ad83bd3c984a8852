"""Experts: networks trained on the real images, and the store of their trajectories."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: the configuration is needed before, and without, PyTorch.
_NAMES = {
    "ExpertConfig": "config",
    "Store": "store",
    "train_experts": "train",
}

__all__ = ["ExpertConfig", "Store", "train_experts"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
