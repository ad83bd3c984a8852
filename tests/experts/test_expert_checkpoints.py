"""Checkpoints inside of an expert: the training goes on from any step to the same bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch import files, interruption
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts, trajectory
from trajmatch.experts.checkpoint import Checkpoints, Place
from trajmatch.experts.train import describe
from trajmatch.experts.workers import work

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]
StopAt = Callable[[int], None]


def places(store: Path, experts: int = 2) -> list[Place]:
    """How far the experts of a store are."""
    checkpoints = Checkpoints(Store.open(store, complete=False), math.inf)
    return [checkpoints.place(expert) for expert in range(experts)]


# By default, an epoch of the 36 images has three steps.
@pytest.mark.parametrize(
    ("settings", "step", "place"),
    [
        ({}, 1, (0, 0)),
        ({"momentum": 0.9, "keep": "0,2"}, 6, (1, 2)),
        ({"optimiser": "adam", "lr_decay": 0.5}, 8, (2, 1)),
        ({"norm": "batch", "dsa": "none", "zca": True}, 5, (1, 1)),
        ({"batch_size": 8}, 2, (0, 1)),  # four full batches and a smaller one
        ({"rho": 0.01, "alpha": 0.5, "loss_scale": "rising", "dtype": "bfloat16"}, 4, (1, 0)),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2])
def test_goes_on_inside_an_epoch_to_equal_bytes(
    make_config: MakeConfig,
    tmp_path: Path,
    contents: Contents,
    stop_at: StopAt,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    step: int,
    place: tuple[int, int],
    at_once: int,
) -> None:
    whole = make_config(out=tmp_path / "whole", epochs=3, **settings)
    train_experts(whole)
    config = make_config(epochs=3, resume=True, **settings)
    stop_at(step)
    with pytest.raises(interruption.Interrupted) as stop:
        train_experts(config)
    assert stop.value.kept.endswith("has 0 of 2 experts and a checkpoint of those in training")
    assert places(config.out) == [place, (0, 0)]
    monkeypatch.setattr(trajectory, "steps_at_once", lambda device: at_once)
    train_experts(config)
    assert contents(config.out) == contents(whole.out)  # hidden files included: none is left


def test_a_run_of_several_steps_at_once_goes_on_to_equal_bytes(
    make_config: MakeConfig,
    tmp_path: Path,
    contents: Contents,
    stop_at: StopAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_experts(make_config(out=tmp_path / "whole", epochs=3, batch_size=8))
    config = make_config(epochs=3, batch_size=8, resume=True)
    # An epoch has four full batches and a smaller one: it is taken in three parts.
    for stop, at_once, place in ((5, 2, (1, 2)), (2, 1, (1, 3)), (2, 2, (1, 4))):
        monkeypatch.setattr(trajectory, "steps_at_once", lambda device, steps=at_once: steps)
        stop_at(stop)
        with pytest.raises(interruption.Interrupted):
            train_experts(config)
        assert places(config.out)[0] == place
    train_experts(config)
    assert contents(config.out) == contents(tmp_path / "whole")


def test_progress_counts_the_epochs_of_a_checkpoint(
    make_config: MakeConfig, stop_at: StopAt
) -> None:
    done: list[int] = []

    class Progress:
        def update(self, epochs: int, **numbers: float) -> None:
            done.append(epochs)

    stop_at(8)
    with pytest.raises(interruption.Interrupted):
        train_experts(make_config(epochs=3))
    train_experts(make_config(epochs=3, resume=True), Progress())
    assert done == [2, 3, 4, 5, 6]


def test_a_group_goes_on_and_its_experts_may_part(
    make_config: MakeConfig, tmp_path: Path, contents: Contents, stop_at: StopAt
) -> None:
    config = make_config(num_experts=3, epochs=3, checkpoint_seconds=1000, device="cpu")
    train_experts(config)
    dataset = load_dataset(config.data)
    store = Store.create(tmp_path / "group", describe(config, dataset, dataset))

    def train(at_once: int, experts: list[int]) -> None:
        work(config, store, dataset, experts, lambda expert, numbers: None, at_once)

    stop_at(5)
    with pytest.raises(interruption.Interrupted):
        train(2, [0, 1])
    assert places(store.path, 3) == [(1, 1), (1, 1), (0, 0)]
    stop_at(3)
    with pytest.raises(interruption.Interrupted):
        train(1, [1, 2])
    assert places(store.path, 3) == [(1, 1), (2, 0), (0, 0)]
    train(3, [0, 1, 2])
    assert contents(store.path) == contents(config.out)


def test_written_now_and_then_and_at_most_a_twentieth_of_the_time(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []
    dataset = load_dataset(make_config().data)
    store = Store.create(make_config().out, describe(make_config(), dataset, dataset))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(store, 60)

    def write(place: Place, group: object) -> None:
        written.append(place)
        now[0] += 5  # seconds on a slow disk

    monkeypatch.setattr(checkpoints, "_write", write)
    for minute in range(8):
        now[0] = max(now[0], 30.0 * minute)
        checkpoints.visit(Place(0, minute), [])
    assert written == [(0, 2), (0, 6)]  # after 60 s, and 100 s after the end of that at 65 s


def test_every_step_if_asked_for(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    save = files.save_tensors

    def spy(path: Path, *arguments: Any, **named: Any) -> None:
        written.append(Path(path).name)
        save(path, *arguments, **named)

    monkeypatch.setattr(files, "save_tensors", spy)
    train_experts(make_config(num_experts=1, epochs=1, checkpoint_seconds=0))
    assert ".expert_0000.checkpoint.safetensors" in written
    assert written[-1] == "expert_0000.safetensors"


def test_a_checkpoint_left_beside_its_finished_expert_is_removed(
    make_config: MakeConfig, contents: Contents
) -> None:
    store = train_experts(make_config(num_experts=1))
    before = contents(store.path)
    store.checkpoint_path(0).write_bytes(b"left by a process that was killed")
    train_experts(make_config(num_experts=1, resume=True))
    assert contents(store.path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"store": "of another"},
        {"expert": 1},
        {"place": [2, 0]},
        {"place": [1, -1]},
        {"place": [1]},
        {"health": {"train_loss": []}},
        {"health": {}},
        {"health": {"train_loss": [None], "accuracy": [None], "displacement": [0.1]}},
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    make_config: MakeConfig, stop_at: StopAt, change: dict[str, Any]
) -> None:
    stop_at(5)
    with pytest.raises(interruption.Interrupted):
        train_experts(make_config())
    path = Store.open(make_config().out, complete=False).checkpoint_path(0)
    tensors, description = files.load_tensors(path)
    files.save_tensors(path, tensors, {**description, **change})
    with pytest.raises(UserError, match=r"checkpoint.safetensors cannot be used: .*; remove it"):
        train_experts(make_config(resume=True))


@pytest.mark.parametrize("name", ["theta", "snapshots", "last", "total"])
def test_a_tensor_that_does_not_fit_is_refused(
    make_config: MakeConfig, stop_at: StopAt, name: str
) -> None:
    stop_at(5)
    with pytest.raises(interruption.Interrupted):
        train_experts(make_config())
    path = Store.open(make_config().out, complete=False).checkpoint_path(0)
    tensors, description = files.load_tensors(path)
    for changed in ({**tensors, name: torch.zeros(3)}, {**tensors, name: tensors[name].double()}):
        if name == "total" and changed[name].dim() == 0:
            continue  # it is float64 as it is
        files.save_tensors(path, changed, description)
        with pytest.raises(UserError, match="cannot be used"):
            train_experts(make_config(resume=True))
    del tensors[name]
    files.save_tensors(path, tensors, description)
    with pytest.raises(UserError, match="cannot be used"):
        train_experts(make_config(resume=True))
