"""Frozen parameters (``requires_grad=False``) stay as they are, whatever trains the network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trajmatch import artifact, networks
from trajmatch.data import load_dataset
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.objectives import match_trajectory
from trajmatch.distill.objectives.start import perturbed
from trajmatch.evaluate import Protocol, train
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.random import generator

PRETRAINED = 0.5 * torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(7))


def make(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """A network with a pretrained convolution that is frozen, and a bias that is not."""
    stem = nn.Conv2d(in_channels, 4, 3, padding=1)
    stem.weight = nn.Parameter(PRETRAINED.clone(), requires_grad=False)
    middle, head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * image_size**2, num_classes)
    return nn.Sequential(stem, nn.ReLU(), middle, nn.ReLU(), nn.Flatten(), head)


@pytest.fixture(autouse=True)
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("frozen_networks")
    module.__spec__ = sys.__spec__  # what find_spec looks at
    module.make = make  # type: ignore[attr-defined]
    module.all_frozen = lambda **sizes: make(**sizes).requires_grad_(False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frozen_networks", module)


@pytest.fixture
def data(tmp_path: Path) -> str:
    draw, labels = np.random.default_rng(0), np.arange(24) % 3
    images = draw.integers(0, 100, (24, 8, 8, 1)) + 50 * labels[:, None, None, None]
    arrays = {"x_train": images.astype(np.uint8), "y_train": labels}
    arrays |= {"x_test": arrays["x_train"], "y_test": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"


def frozen_part(theta: Tensor) -> Tensor:
    """The pretrained weights: the first parameter of the network."""
    return theta[: PRETRAINED.numel()].view_as(PRETRAINED)


def trained(data: str, out: Path, **settings: Any) -> Store:
    return train_experts(
        ExpertConfig(
            **{
                "out": out,
                "data": data,
                "network": "frozen_networks:make",
                "num_experts": 1,
                "epochs": 3,
                "batch_size": 8,
                "workers": 1,
                "weight_decay": 0.1,
                **settings,
            }
        )
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"optimiser": "adam", "lr": 1e-3},
        {"rho": 0.05, "alpha": 0.3},
        {"penalty": 0.5, "lr_decay": 0.5},
    ],
)
def test_an_expert_keeps_them_through_every_part_of_its_step(
    data: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    store = trained(data, tmp_path / "store", **settings)
    first, last = store.snapshot(0, 0), store.snapshot(0, 3)
    assert torch.equal(frozen_part(first), PRETRAINED)
    assert torch.equal(frozen_part(last), PRETRAINED)
    moved = (last - first)[PRETRAINED.numel() :]
    assert (moved != 0).double().mean() > 0.9


def test_a_student_keeps_them_and_matches_the_rest(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = trained(data, tmp_path / "store")
    starts: list[Tensor] = []

    def watched(*arguments: Any) -> Tensor:
        starts.append(perturbed(*arguments))
        return starts[-1]

    monkeypatch.setattr(match_trajectory, "perturbed", watched)
    config = DistillConfig(
        experts=store.path,
        out=tmp_path / "d.safetensors",
        iterations=2,
        student_steps=2,
        expert_epochs=1,
        perturb=1.0,
        lr_img=1.0,
        eval_every=2,
        eval_seeds=1,
        eval_epochs=2,
    )
    result = distill(config)
    assert artifact.load(config.out).images.isfinite().all() and result.scores
    assert starts and all(torch.equal(frozen_part(start), PRETRAINED) for start in starts)
    whole = store.snapshot(0, 0)
    assert not torch.equal(starts[0][PRETRAINED.numel() :], whole[PRETRAINED.numel() :])


def test_an_evaluation_keeps_them(data: str) -> None:
    dataset = load_dataset(data)
    model = networks.build(networks.specify("frozen_networks:make", 1, 3, 8))
    networks.initialise(model, generator(3))
    images, labels = dataset.normalise(dataset.train_images), dataset.train_labels
    before = networks.flat_parameters(model)
    train(model, images, labels, Protocol(0.01, "none", 3, batch_size=8, weight_decay=0.1))
    after = networks.flat_parameters(model)
    assert torch.equal(frozen_part(after), PRETRAINED)
    assert ((after - before)[PRETRAINED.numel() :] != 0).double().mean() > 0.9


def test_initialisation_keeps_them_in_any_module() -> None:
    plain, frozen = (networks.ConvNet(1, 3, 8, width=4, depth=1) for _ in range(2))
    frozen.features[0].requires_grad_(False)
    kept = frozen.features[0].weight.clone()
    networks.initialise(plain, generator(1))
    networks.initialise(frozen, generator(1))
    assert torch.equal(frozen.features[0].weight, kept)
    # The other parameters are drawn as if nothing were frozen.
    assert torch.equal(frozen.classifier.weight, plain.classifier.weight)


def test_weight_decay_without_frozen_parameters_is_that_of_all() -> None:
    model = networks.ConvNet(1, 3, 8, width=4, depth=1)
    assert networks.trainable(model) is None
    model.classifier.bias.requires_grad_(False)
    mask = networks.trainable(model)
    assert mask is not None and mask.tolist() == [1.0] * (len(mask) - 3) + [0.0] * 3


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frozen_networks:all_frozen .* all of them are frozen"):
        networks.build(networks.specify("frozen_networks:all_frozen", 1, 3, 8))
