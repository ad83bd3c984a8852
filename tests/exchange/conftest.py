"""A tiny data set, a store of experts on it, and a distilled set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import tiny_set

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.data import load_dataset, zca
from trajmatch.experts import ExpertConfig, Store, train_experts

CLASSES = 3
NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of 8x8 pixels with a bright row that tells the class; returns the data set's URI."""
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 30)):
        labels = np.arange(count) % CLASSES
        pixels = draw.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
        pixels[np.arange(count), 2 * labels] += 180
        arrays |= {f"x_{split}": pixels, f"y_{split}": labels}
        arrays[f"{split}_vectors"] = np.random.default_rng(1).standard_normal((count, 5))
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory, data: str) -> Store:
    """Three experts with four snapshots each; look, but do not touch."""
    folder = tmp_path_factory.mktemp("experts") / "store"
    settings = {"num_experts": 3, "epochs": 3, "width": 4, "depth": 1, "workers": 1}
    return train_experts(ExpertConfig(out=folder, data=data, batch_size=10, lr=0.1, **settings))


@pytest.fixture(params=["index", "logit", "target", "zca"])
def distilled(request: pytest.FixtureRequest, data: str) -> Artifact:
    """Two images per class with hard labels, with soft labels, with targets, or whitened."""
    return made(request.param, data)


def data_for(kind: str, data: str) -> str:
    """The data set that a kind of labels needs."""
    return f"{data}?targets=vectors" if kind == "target" else data


def made(kind: str, data: str) -> Artifact:
    """Two images per class: of a kind of labels, or whitened (zca), with hard labels."""
    index = torch.arange(CLASSES).repeat_interleave(2)
    soft = torch.randn(len(index), CLASSES).scatter_(1, index[:, None], 5.0)
    return tiny_set(
        data_for(kind, data),
        images=torch.randn(len(index), 1, 8, 8),
        labels={"logit": soft, "target": torch.randn(len(index), 5)}.get(kind, index),
        label_kind="index" if kind == "zca" else kind,
        lr=0.0123,  # which float32 does not have
        zca=zca.fit(load_dataset(data).train_images) if kind == "zca" else None,
        dsa="flip_crop",
        ipc=2,
        recipe={"lr_img": 100.0},
        seed=3,
        versions={"trajmatch": "0"},
    )


@pytest.fixture
def file(tmp_path: Path, distilled: Artifact) -> Path:
    artifact.save(tmp_path / "d.safetensors", distilled)
    return tmp_path / "d.safetensors"
