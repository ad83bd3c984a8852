"""How good a set of images is: fresh networks trained on it by a fixed protocol, and tested."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: the configuration is needed before, and without, PyTorch.
_NAMES = {
    "EvalConfig": "config",
    "Protocol": "protocol",
    "Score": "scores",
    "accuracy": "measure",
    "evaluate_artifact": "distilled",
    "evaluate_each": "scores",
    "evaluate_set": "scores",
    "random_subset": "scores",
    "train": "protocol",
    "train_and_test": "protocol",
}

__all__ = [
    "EvalConfig",
    "Protocol",
    "Score",
    "accuracy",
    "evaluate_artifact",
    "evaluate_each",
    "evaluate_set",
    "random_subset",
    "train",
    "train_and_test",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
