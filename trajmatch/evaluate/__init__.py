"""How good a set of images is: fresh networks trained on it by a fixed protocol, and tested."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded on first use: the configuration is needed before, and without, PyTorch.
_NAMES = {
    "PROTOCOLS": "protocol",
    "EvalConfig": "evaluate.config",
    "Outcome": "training",
    "Protocol": "protocol",
    "Score": "evaluate.scores",
    "TrainingSets": "evaluate.baselines",
    "accuracy": "inference",
    "evaluate_artifact": "evaluate.distilled",
    "evaluate_set": "evaluate.scores",
    "k_center": "evaluate.baselines",
    "random_subset": "evaluate.baselines",
    "train": "training",
    "train_fresh": "training",
}

__all__ = [
    "PROTOCOLS",
    "EvalConfig",
    "Outcome",
    "Protocol",
    "Score",
    "TrainingSets",
    "accuracy",
    "evaluate_artifact",
    "evaluate_set",
    "k_center",
    "random_subset",
    "train",
    "train_fresh",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"trajmatch.{_NAMES[name]}"), name)
