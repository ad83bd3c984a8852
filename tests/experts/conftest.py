"""A tiny data set and configurations that train on it in well under a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajmatch import interruption
from trajmatch.experts import ExpertConfig

CLASSES = 3


def write_npz(path: Path, seed: int) -> str:
    """Images of 8x8 pixels with a bright row that tells the class; returns the data set's URI."""
    draw = np.random.default_rng(seed)

    def images(labels: np.ndarray) -> np.ndarray:
        pixels = draw.integers(0, 120, (len(labels), 8, 8, 1), dtype=np.uint8)
        pixels[np.arange(len(labels)), 2 * labels] += 100
        return pixels

    y_train, y_test = np.arange(36) % CLASSES, np.arange(15) % CLASSES
    np.savez(path, x_train=images(y_train), y_train=y_train, x_test=images(y_test), y_test=y_test)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz", seed=0)


@pytest.fixture
def other_data(tmp_path: Path) -> str:
    return write_npz(tmp_path / "other.npz", seed=1)


@pytest.fixture
def make_config(tmp_path: Path, tiny_data: str) -> Callable[..., ExpertConfig]:
    def make(**fields: Any) -> ExpertConfig:
        small = dict(out=tmp_path / "store", data=tiny_data, num_experts=2, epochs=2, batch_size=16)
        small.update(width=4, depth=2, workers=1)
        return ExpertConfig(**{**small, **fields})

    return make


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Bytes of every file in a folder, hidden ones included."""
    return lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes the training stop before the step of some number, counted over all experts from 1."""
    real = interruption.check

    def install(number: int) -> None:
        asked = 0

        def check() -> None:
            nonlocal asked
            asked += 1
            if asked == number:
                monkeypatch.setattr(interruption, "check", real)
                raise interruption.Interrupted("SIGTERM", 143)

        monkeypatch.setattr(interruption, "check", check)

    yield install
    monkeypatch.setattr(interruption, "check", real)
