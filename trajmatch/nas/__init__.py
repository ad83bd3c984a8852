"""Search for an architecture on a small set of images, and how far its ranking is the real one."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: the configuration is needed before, and without, PyTorch.
_NAMES = {
    "Architecture": "space",
    "NasConfig": "config",
    "choose": "space",
    "rank_correlations": "ranking",
    "search": "loop",
    "spearman": "ranking",
}

__all__ = ["Architecture", "NasConfig", "choose", "rank_correlations", "search", "spearman"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
