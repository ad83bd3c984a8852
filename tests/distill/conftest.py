"""A data set of three classes and two experts, so small that a run takes a moment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trajmatch.distill import DistillConfig
from trajmatch.experts import ExpertConfig, train_experts

CLASSES = ("circle/o", "cross", "dot")
SIZE = 8


def write_data(path: Path, seed: int = 0, per_class: int = 12) -> str:
    """Images of a class are its own pattern with noise; returns the URI."""
    random = np.random.default_rng(seed)
    patterns = random.integers(60, 196, (len(CLASSES), SIZE, SIZE))

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(len(CLASSES)), count)
        noise = random.integers(-50, 51, (len(labels), SIZE, SIZE))
        return (patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels

    x_train, y_train = split(per_class)
    x_test, y_test = split(6)
    np.savez(
        path,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=np.array(CLASSES),
    )
    return f"npz:{path}"


def write_store(path: Path, data: str, **settings: object) -> Path:
    config = ExpertConfig(
        **{
            "out": path,
            "data": data,
            "num_experts": 2,
            "epochs": 4,
            "batch_size": 8,
            "lr": 0.05,
            "width": 4,
            "depth": 1,
            "workers": 1,
            "quiet": True,
            **settings,
        }
    )
    train_experts(config)
    return path


@pytest.fixture
def make_data() -> Callable[..., str]:
    return write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data") / "shapes.npz")


@pytest.fixture(scope="session")
def target_data(tmp_path_factory: pytest.TempPathFactory, data: str) -> str:
    """The data set with targets that a random linear map makes of its images."""
    path = tmp_path_factory.mktemp("targets") / "shapes.npz"
    content = dict(np.load(data.removeprefix("npz:")))
    weight = np.random.default_rng(2).standard_normal((64, 5)) / 8
    for part in ("train", "test"):
        content[f"{part}_dino"] = (content[f"x_{part}"].reshape(-1, 64) / 64.0 - 2) @ weight
    np.savez(path, **content)
    return f"npz:{path}?targets=dino"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    return write_store(tmp_path_factory.mktemp("experts") / "store", data)


@pytest.fixture(scope="session")
def holdout_store(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    return write_store(tmp_path_factory.mktemp("experts") / "holdout", data, holdout=0.25)


@pytest.fixture
def make_store(tmp_path: Path, data: str) -> Callable[..., Path]:
    """Makes a store by a name, with some fields set differently."""
    return lambda name, **settings: write_store(tmp_path / name, data, **settings)


@pytest.fixture
def configure(store: Path, tmp_path: Path) -> Callable[..., DistillConfig]:
    """A configuration of a short run, with some fields set differently."""

    def make(**settings: object) -> DistillConfig:
        return DistillConfig(
            **{
                "experts": store,
                "out": tmp_path / "distilled.safetensors",
                "ipc": 2,
                "iterations": 10,
                "student_steps": 3,
                "expert_epochs": 1,
                "max_start_epoch": 3,
                "batch_syn": 4,
                "lr_img": 10.0,
                "lr_init": 0.05,
                "checkpoint_every": 2,
                "quiet": True,
                **settings,
            }
        )

    return make
