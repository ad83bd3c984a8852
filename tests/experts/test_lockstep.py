"""Experts in lockstep, recorded by a stand-in that calls the steps, and on a GPU for real."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import Counting
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.data import DSA, ChannelNormalisation, Dataset, load_dataset
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train, train_experts, trajectory, workers
from trajmatch.experts.config import Schedule
from trajmatch.experts.epoch import Curriculum
from trajmatch.experts.scores import Scores
from trajmatch.experts.step import (
    Adam,
    Batch,
    ExpertState,
    ExpertStep,
    GradientPenalty,
    Gsam,
    Sgd,
    TakeSteps,
    steps_for,
)
from trajmatch.experts.trajectory import train_lockstep
from trajmatch.experts.workers import work
from trajmatch.random import generator

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]

CPU = torch.device("cpu")

FULL_DSA = "color_crop_cutout_flip_scale_rotate"


def refuse(function):
    raise RuntimeError("operation not permitted")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Lets all experts be trained by replays of what this recorded."""
    counting = Counting()
    monkeypatch.setattr(
        trajectory, "steps_for", lambda step, state, device: steps_for(step, state, CPU, counting)
    )
    return counting


@pytest.fixture(scope="module")
def dataset(tiny_data: str) -> Dataset:
    return load_dataset(tiny_data)


def manifest_of(**recipe: Any) -> dict[str, Any]:
    plain = {
        "optimiser": "sgd",
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.02,
        "lr_decay": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "rho": 0.0,
        "alpha": 0.0,
        "loss_scale": "constant",
        "penalty": 0.0,
        "penalty_norm": "pixel",
        "dsa": FULL_DSA,
    }
    return {
        "network": networks.ConvNet(1, 3, 8, width=4, depth=2).spec(),
        "recipe": {**plain, **recipe},
        "seed": 5,
        "snapshots": [0, 1, 2, 3],
    }


def written_out(
    manifest: dict[str, Any], dataset: Dataset, expert: int, curriculum: Curriculum | None = None
) -> tuple[Tensor, list]:
    """The training of one expert as a loop that has no state but local variables."""
    recipe, seed = manifest["recipe"], manifest["seed"]
    model = networks.build(manifest["network"])
    networks.initialise(model, generator(seed, "expert", expert, "initialisation"))
    order = generator(seed, "expert", expert, "order")
    augmentation, dsa = generator(seed, "expert", expert, "dsa"), DSA(recipe["dsa"])
    theta = networks.flat_parameters(model)
    buffer = torch.zeros_like(theta)
    snapshots, losses = [theta], []
    for epoch in range(recipe["epochs"]):
        total = torch.zeros((), dtype=torch.float64)
        seen = torch.arange(36) if curriculum is None else curriculum.images(epoch)
        shuffled = seen[torch.randperm(len(seen), generator=order)]
        for batch in torch.split(shuffled, recipe["batch_size"]):
            inputs = dsa(dataset.normalise(dataset.train_images[batch]), augmentation)
            loss, grad = ops.gradient(model, theta, inputs, dataset.train_labels[batch])
            if recipe["weight_decay"]:
                grad = grad.add(theta, alpha=recipe["weight_decay"])
            buffer = grad.add(buffer, alpha=recipe["momentum"])
            theta = theta.addcmul(torch.tensor(recipe["lr"]), buffer, value=-1)
            total += loss * len(batch)
        snapshots.append(theta)
        losses.append(total.item() / len(shuffled))
    return torch.stack(snapshots), losses


RECIPES = [
    {},
    {"dsa": "none", "momentum": 0.9},
    {"momentum": 0.5, "weight_decay": 1e-3, "batch_size": 15},
    {"batch_size": 12},
    {"batch_size": 10},
]


def assert_written_out(
    manifest: dict[str, Any],
    dataset: Dataset,
    experts: list[int],
    curriculum: Curriculum | None = None,
) -> None:
    trained = train_lockstep(manifest, dataset, experts, curriculum=curriculum)
    assert len(trained) == len(experts)
    for expert, (snapshots, metrics, *_) in zip(experts, trained, strict=True):
        wanted, losses = written_out(manifest, dataset, expert, curriculum)
        assert snapshots.numpy().tobytes() == wanted.numpy().tobytes()
        assert metrics["train_loss"] == losses


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("experts", [[4], [2, 0, 7]])
def test_the_experts_are_those_of_the_loop_written_out(dataset, recipe, experts) -> None:
    assert_written_out(manifest_of(**recipe), dataset, experts)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_images_of_an_epoch_are_those_of_the_curriculum(dataset, recipe) -> None:
    scores = Scores(torch.randn(36, generator=torch.Generator().manual_seed(0)), "")
    curriculum = Curriculum(Schedule.parse("0.3,1", "1:0.5"), dataset, scores)
    assert_written_out(manifest_of(**recipe), dataset, [2, 0], curriculum)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("experts", [[4], [0, 1], [2, 0, 7]])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_replayed_they_are_the_same(
    dataset, record, recipe, experts, at_once, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectory, "steps_at_once", lambda device: at_once)
    assert_written_out(manifest_of(**recipe), dataset, experts)
    # An epoch has three full batches; or two and a smaller one; or three and a smaller one.
    calls, shapes = {
        12: {1: (9, 1), 2: (6, 2), 3: (3, 1)},
        15: {1: (9, 2), 2: (6, 2), 3: (9, 2)},
        10: {1: (12, 2), 2: (9, 3), 3: (6, 2)},
    }.get(recipe.get("batch_size", 15), {})[at_once]
    assert record.recordings == shapes
    # The first call of each shape is not replayed; the first replay is compared with a call.
    assert record.replays == calls - shapes + record.recordings


@pytest.mark.parametrize(("at_once", "groups"), [(2, 2), (3, 2), (4, 1)])
def test_groups_write_the_bytes_of_one_at_a_time(
    make_config: MakeConfig,
    tmp_path: Path,
    contents: Contents,
    record: Counting,
    at_once: int,
    groups: int,
) -> None:
    config = make_config(num_experts=4, out=tmp_path / "one", device="cpu")
    manifest = train_experts(config).manifest
    one_by_one = record.recordings
    store = Store.create(tmp_path / "groups", manifest)
    training, _, _ = store.training_set(load_dataset(manifest["data"]))
    told: list[int] = []
    work(config, store, training, [0, 1, 2, 3], lambda expert, _: told.append(expert), at_once)
    assert contents(tmp_path / "groups") == contents(tmp_path / "one")
    assert sorted(told) == [0, 0, 1, 1, 2, 2, 3, 3]
    # Each group records both sizes of batch.
    assert (one_by_one, record.recordings - one_by_one) == (8, 2 * groups)


def test_fewer_go_together_where_memory_runs_out(
    make_config: MakeConfig,
    tmp_path: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(num_experts=5, out=tmp_path / "one", device="cpu")
    manifest = train_experts(config).manifest
    store = Store.create(tmp_path / "groups", manifest)
    training, _, _ = store.training_set(load_dataset(manifest["data"]))
    groups: list[int] = []

    def limited(manifest, training, experts, *options):
        groups.append(len(experts))
        if len(experts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return train_lockstep(manifest, training, experts, *options)

    monkeypatch.setattr(workers, "train_lockstep", limited)
    with pytest.warns(
        UserWarning,
        match=r"for [53] experts side by side; continuing with .* \(CUDA out of memory\)",
    ):
        work(config, store, training, [*range(5)], lambda *_: None, 5)
    assert groups == [5, 3, 2, 2, 1]
    assert contents(tmp_path / "groups") == contents(tmp_path / "one")


def test_on_a_gpu_the_experts_of_a_group_share_a_process(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def worked(config, store, training, experts, on_epoch, at_once, _):
        calls.append((config.device, at_once))
        work(replace(config, device="cpu"), store, training, experts, on_epoch, at_once)

    monkeypatch.setattr(train, "usable_device", lambda device: device)
    monkeypatch.setattr(train, "work", worked)
    train_experts(make_config(num_experts=3, workers=2, device="cuda"))
    train_experts(make_config(num_experts=5, workers=0, device="cuda", resume=True))
    assert calls == [("cuda", 2), ("cuda", 2)]  # of the two that it lacked


def test_one_that_diverges_is_named(dataset) -> None:
    with pytest.raises(UserError, match="expert 6 diverged in epoch 1"):
        train_lockstep(manifest_of(lr=1e30), dataset, [6, 7])


# --- the steps


#: What the parts of a step may be.
PARTS = {
    "sgd": {"optimiser": Sgd(0.9), "weight_decay": 1e-3},
    "adam": {"optimiser": Adam(), "weight_decay": 1e-3},
    "smooth and flat": {"penalty": GradientPenalty(2.0), "gsam": Gsam(0.01, 0.3)},
}


def group(
    count: int, device: str = "cpu", norm: str = "instance", **parts: Any
) -> tuple[ExpertStep, ExpertState]:
    """A step on ten random images, and experts that begin in different places."""
    draw = generator(0, "group")
    model = networks.ConvNet(1, 3, 8, width=4, depth=2, norm=norm).to(device)
    pixels = torch.randint(0, 256, (10, 1, 8, 8), generator=draw, dtype=torch.uint8)
    parts = parts or PARTS["sgd"]
    step = ExpertStep(
        model,
        pixels.to(device),
        (torch.arange(10) % 3).to(device),
        ChannelNormalisation((0.5,), (0.25,), device).apply,
        **parts,
    )
    return step, ExpertState.begin(model, step.optimiser, [draw] * count)


def batches(count: int, number: int, size: int = 6, device: str = "cpu") -> Batch:
    """One step's batches of several experts; every number has another learning rate."""
    draw = generator(number, "batches")
    dsa = DSA()
    batch = (
        torch.stack([torch.randperm(10, generator=draw)[:size] for _ in range(count)]),
        torch.stack([dsa.draw(size, 8, 8, draw) for _ in range(count)]),
        torch.full((count,), 0.01 * (1 + number)),
        torch.full((count,), 1.0 - 0.1 * number),
    )
    return Batch(*(each[None].to(device) for each in batch))


def assert_same_steps(count: int, replayed: TakeSteps, state: ExpertState, **choices: Any) -> None:
    plain_step, plain_state = group(count, **choices)
    plain = steps_for(plain_step, plain_state, CPU)
    losses = []
    for number, size in enumerate([6, 6, 4, 6, 4, 6]):
        losses.append(replayed(batches(count, number, size)))
        assert torch.equal(losses[-1], plain(batches(count, number, size)))
        found, expected = state.tensors(), plain_state.tensors()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len({float(each[0]) for each in losses}) == len(losses)  # none was overwritten


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_replays_read_batch_and_learning_rate_anew(count, parts) -> None:
    record = Counting()
    step, state = group(count, **PARTS[parts])
    assert_same_steps(count, steps_for(step, state, CPU, record), state, **PARTS[parts])
    assert (record.recordings, record.replays) == (2, 2 + 4)  # the first are compared with calls


@pytest.mark.parametrize("parts", PARTS)
def test_experts_step_together_as_alone(parts) -> None:
    (step, together), (_, alone) = group(3, **PARTS[parts]), group(3, **PARTS[parts])
    for number, size in enumerate([6, 6, 4]):
        batch = Batch(*(each[0] for each in batches(3, number, size)))
        # Each expert has its own learning rate and loss scale.
        factors = torch.tensor([1.0, 2.0, 0.5])
        batch = batch._replace(lr=batch.lr * factors, loss_scale=batch.loss_scale * factors)
        losses = step(together, batch)
        for own in (slice(0, 1), slice(1, 2), slice(2, 3)):
            assert torch.equal(step(alone[own], Batch(*(each[own] for each in batch))), losses[own])
    for name, tensor in together.tensors().items():
        assert torch.equal(tensor, alone.tensors()[name])


def test_every_expert_has_statistics_of_its_own() -> None:
    step, state = group(2, norm="batch")
    assert state.statistics.numel() > 0
    assert_same_steps(2, steps_for(step, state, CPU, Counting()), state, norm="batch")
    assert not torch.equal(*state.statistics)
    alone_step, alone = group(1, norm="batch")
    plain = steps_for(alone_step, alone, CPU)
    for number, size in enumerate([6, 6, 4, 6, 4, 6]):
        plain(Batch(*(each[:, :1] for each in batches(2, number, size))))
    assert torch.equal(alone.statistics, state.statistics[:1])


def test_steps_that_cannot_be_recorded_are_called_and_it_is_said_once() -> None:
    step, state = group(2)
    steps = steps_for(step, state, CPU, refuse)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph.*not permitted") as told:
        assert_same_steps(2, steps, state)
    assert len(told) == 1


def test_a_recording_that_fails_half_way_changes_no_state() -> None:
    def half_way(function):
        function()
        raise RuntimeError("out of memory")

    step, state = group(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert_same_steps(2, steps_for(step, state, CPU, half_way), state)


@pytest.mark.cuda
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("at_once", [1, 16])
def test_a_cuda_graph_takes_the_steps_of_calls(count, at_once) -> None:
    step, state = group(count, "cuda")
    plain_step, plain_state = group(count, "cuda")
    plain = steps_for(plain_step, plain_state, CPU)
    replayed = steps_for(step, state, torch.device("cuda"))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # it would say that recording failed
        for number, size in enumerate([6, 6, 4, 6, 4, 6]):
            steps = [batches(count, (number + i) % 6, size, "cuda") for i in range(at_once)]
            batch = Batch(*map(torch.cat, zip(*steps, strict=True)))
            found, wanted = replayed(batch), plain(batch)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for name, wanted in plain_state.tensors().items():
        torch.testing.assert_close(state.tensors()[name], wanted, rtol=1e-3, atol=1e-5)
