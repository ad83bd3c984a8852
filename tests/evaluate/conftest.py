"""A tiny data set and a file that was distilled from it."""

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
from trajmatch.networks import ConvNet


def write_npz(path: Path, seed: int) -> str:
    """Images of 8x8 pixels with a bright row that tells the class; returns the data set's URI."""
    draw = np.random.default_rng(seed)

    def images(labels: np.ndarray) -> np.ndarray:
        pixels = draw.integers(0, 120, (len(labels), 8, 8, 1), dtype=np.uint8)
        pixels[np.arange(len(labels)), 2 * labels] += 100
        return pixels

    y_train, y_test = np.arange(36) % 3, np.arange(15) % 3
    np.savez(path, x_train=images(y_train), y_train=y_train, x_test=images(y_test), y_test=y_test)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz", seed=0)


@pytest.fixture
def other_data(tmp_path: Path) -> str:
    return write_npz(tmp_path / "other.npz", seed=1)


@pytest.fixture
def network_spec() -> dict[str, Any]:
    return ConvNet(1, 3, 8, width=4, depth=2).spec()


@pytest.fixture
def make_artifact(
    tmp_path: Path, tiny_data: str, network_spec: dict[str, Any]
) -> Callable[..., Path]:
    """Writes a distilled file (really the first two images of each class); returns its path."""

    def make(**changes: Any) -> Path:
        dataset = load_dataset(tiny_data)
        fields: dict[str, Any] = {
            "images": dataset.normalise(dataset.train_images[:6]),
            "labels": dataset.train_labels[:6],
            "label_kind": "index",
            "lr": 0.03,
            "mean": dataset.mean,
            "std": dataset.std,
            "dsa": "flip_crop",
            "network": network_spec,
            "class_names": dataset.class_names,
            "dataset_name": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "ipc": 2,
            "recipe": {},
            "seed": 0,
            "versions": {"trajmatch": "0", "torch": torch.__version__},
        }
        path = tmp_path / "distilled.safetensors"
        artifact.save(path, Artifact(**{**fields, **changes}))
        return path

    return make
