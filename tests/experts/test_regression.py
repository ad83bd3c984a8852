"""Experts that regress the target vectors of a data set (MKDT's setting)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.cli.main import main
from trajmatch.data import Dataset, load_dataset
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.config import ScoreConfig
from trajmatch.experts.health import examine
from trajmatch.experts.scores import read_scores, score_images

WIDTH = 5  # numbers in a target
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="session")
def target_data(tmp_path_factory: pytest.TempPathFactory, tiny_data: str) -> str:
    """The tiny data set with targets that a random linear map makes of its images."""
    path = tmp_path_factory.mktemp("targets") / "tiny.npz"
    content = dict(np.load(tiny_data.removeprefix("npz:")))
    weight = np.random.default_rng(2).standard_normal((64, WIDTH)) / 8
    for part in ("train", "test"):
        content[f"{part}_dino"] = content[f"x_{part}"].reshape(-1, 64) / 64.0 @ weight
    np.savez(path, **content)
    return f"npz:{path}?targets=dino"


@pytest.fixture
def regress(make_config: Callable[..., ExpertConfig], target_data: str) -> Callable[..., Store]:
    def train(**fields: Any) -> Store:
        return train_experts(make_config(data=target_data, **{"num_experts": 1, **fields}))

    return train


def outputs(store: Store, epoch: int, dataset: Dataset, images: Tensor) -> Tensor:
    model = networks.build(store.manifest["network"]).double()
    networks.load_flat_parameters(model, store.snapshot(0, epoch).double())
    with torch.enable_grad():
        return model(dataset.normalise(images).double())


def test_the_store_says_that_it_regresses(regress: Callable[..., Store], target_data: str) -> None:
    store, dataset = regress(), load_dataset(target_data)
    assert store.loss == "mse" and store.manifest["recipe"]["loss"] == "mse"
    assert store.manifest["network"]["num_classes"] == WIDTH
    metrics = store.metrics(0)
    assert {"error", "test_error", "guessing"} <= metrics.keys() and "accuracy" not in metrics
    found = outputs(store, 2, dataset, dataset.test_images)
    wanted = (found - dataset.test_answers).square().mean().item()
    assert metrics["test_error"] == pytest.approx(wanted, rel=1e-4)
    assert metrics["error"][-1] == pytest.approx(wanted, rel=1e-4)
    mean = dataset.train_answers.mean(dim=0)
    assert metrics["guessing"] == pytest.approx((dataset.train_answers - mean).square().mean())


def test_a_step_goes_along_the_gradient_of_the_squared_error(
    regress: Callable[..., Store], target_data: str
) -> None:
    store, dataset = regress(batch_size=36, epochs=1, dsa="none", lr=0.1), load_dataset(target_data)
    model = networks.build(store.manifest["network"]).double()
    networks.load_flat_parameters(model, store.snapshot(0, 0).double())
    found = model(dataset.normalise(dataset.train_images).double())
    loss = (found - dataset.train_answers).square().sum() / found.numel()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    step = 0.1 * torch.cat([grad.flatten() for grad in grads])
    moved = store.snapshot(0, 0).double() - store.snapshot(0, 1).double()
    assert (moved - step).norm() < 1e-4 * step.norm()
    assert store.metrics(0)["train_loss"] == [pytest.approx(loss.item(), rel=1e-5)]


def test_training_goes_on_where_it_was_left(
    regress: Callable[..., Store], tmp_path: Path, contents: Contents
) -> None:
    whole = contents(regress(epochs=3, out=tmp_path / "whole").path)
    regress(epochs=3, until_epoch=2, out=tmp_path / "parts")
    assert contents(regress(epochs=3, resume=True, out=tmp_path / "parts").path) == whole


def test_classes_are_learned_under_the_same_identity_as_before(
    make_config: Callable[..., ExpertConfig], tmp_path: Path
) -> None:
    store = train_experts(make_config(num_experts=1))
    given = make_config(num_experts=1, loss="cross_entropy", out=tmp_path / "given")
    assert "loss" not in store.manifest["recipe"]
    assert train_experts(given).identity == store.identity


def test_a_loss_that_does_not_fit_the_data_is_refused(
    make_config: Callable[..., ExpertConfig], target_data: str
) -> None:
    config = make_config(loss="mse")
    with pytest.raises(UserError, match=r"--loss mse contradicts .* with \?targets=NAME"):
        train_experts(config)
    with pytest.raises(
        UserError, match=r"--loss cross_entropy contradicts .* without \?targets=NAME"
    ):
        train_experts(replace(config, loss="cross_entropy", data=target_data))
    assert not config.out.exists()


def test_the_commands_tell_errors(
    tmp_path: Path, target_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    flags = ["--epochs", "1", "--num-experts", "1", "--width", "4", "--depth", "2"]
    assert main(["expert", "--out", str(path), "--data", target_data, "--loss", "mse", *flags]) == 0
    said = capsys.readouterr()
    assert "test error" in said.out and "accuracy" not in said.out
    error = Store.open(path).metrics(0)["test_error"]
    assert f"  {error:.4g}  " in said.out
    assert main(["store", "ls", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"test error    {error:.4g} (from" in shown and "loss mse" in shown


def test_an_expert_that_only_guesses_is_found(regress: Callable[..., Store]) -> None:
    (sign,) = examine(regress(lr=1e-6))
    assert (
        sign.startswith("expert 0 ended with a test error above ") and "is guessing) after" in sign
    )


def test_scores_are_the_distance_between_outputs_and_targets(
    regress: Callable[..., Store], target_data: str, tmp_path: Path
) -> None:
    store, dataset = regress(), load_dataset(target_data)
    score_images(ScoreConfig(store=store.path, out=tmp_path / "scores.safetensors", epoch=1))
    found = read_scores(tmp_path / "scores.safetensors", dataset, (0.0, 0))
    wanted = outputs(store, 1, dataset, dataset.train_images) - dataset.train_answers
    torch.testing.assert_close(found.values, wanted.norm(dim=1).detach(), rtol=1e-5, atol=1e-6)
