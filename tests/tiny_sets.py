"""A tiny distilled set, for tests that need any sound one."""

from __future__ import annotations

from typing import Any

import torch

from trajmatch import networks
from trajmatch.artifact import Artifact
from trajmatch.data import load_dataset


def tiny_set(data: str, **changes: Any) -> Artifact:
    """Return one random image per class of a data set, with hard labels."""
    dataset = load_dataset(data)
    channels, size, _ = dataset.train_images.shape[1:]
    fields: dict[str, Any] = {
        "images": torch.randn(dataset.num_classes, channels, size, size),
        "labels": torch.arange(dataset.num_classes),
        "label_kind": "index",
        "lr": 0.01,
        "mean": dataset.mean,
        "std": dataset.std,
        "dsa": "none",
        "network": networks.specify("convnet:width=4,depth=1", channels, dataset.num_outputs, size),
        "class_names": dataset.class_names,
        "dataset_name": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "ipc": 1,
        "recipe": {},
        "seed": 0,
        "versions": {},
    }
    return Artifact(**{**fields, **changes})
