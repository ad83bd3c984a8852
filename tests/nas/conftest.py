"""A search over four tiny networks, and the file that it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.data import load_dataset
from trajmatch.nas import NasConfig
from trajmatch.networks import ConvNet


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of 8x8 pixels with a bright row that tells the class."""
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "tiny.npz"

    def images(labels: np.ndarray) -> np.ndarray:
        pixels = draw.integers(0, 160, (len(labels), 8, 8, 1), dtype=np.uint8)
        pixels[np.arange(len(labels)), 2 * labels] += 60
        return pixels

    y_train, y_test = np.arange(30) % 3, np.arange(30) % 3
    np.savez(path, x_train=images(y_train), y_train=y_train, x_test=images(y_test), y_test=y_test)
    return f"npz:{path}"


@pytest.fixture
def configure(tmp_path: Path, data: str) -> Callable[..., NasConfig]:
    """A configuration for a distilled file (really the first image of each class)."""
    dataset = load_dataset(data)

    def make(lr: float = 0.05, **changes: Any) -> NasConfig:
        file = tmp_path / "distilled.safetensors"
        artifact.save(
            file,
            Artifact(
                images=dataset.normalise(dataset.train_images[:3]),
                labels=dataset.train_labels[:3],
                label_kind="index",
                lr=lr,
                mean=dataset.mean,
                std=dataset.std,
                dsa="none",
                network=ConvNet(1, 3, 8, width=4, depth=1).spec(),
                class_names=dataset.class_names,
                dataset_name=dataset.name,
                dataset_fingerprint=dataset.fingerprint,
                ipc=1,
                recipe={},
                seed=0,
                versions={"trajmatch": "0", "torch": torch.__version__},
            ),
        )
        settings: dict[str, Any] = {
            "out": tmp_path / "search",
            "data": data,
            "depths": (1, 2),
            "widths": (32,),
            "activations": ("relu",),
            "norms": ("none", "batch"),
            "poolings": ("average",),
            "epochs": 3,
            "real_epochs": 2,
            "top": (2, 3, 9),
        }
        return NasConfig(file=file, **{**settings, **changes})

    return make
