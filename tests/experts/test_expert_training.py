"""Training of experts: what comes out, from which seed, and after which interruption."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from trajmatch import memory, networks
from trajmatch.data import DSA, load_dataset, zca
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.store import exists
from trajmatch.experts.train import automatic_workers
from trajmatch.random import generator

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]


class Interruption:
    """Progress that presses ctrl-C after a number of epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def update(self, done: int, **numbers: float) -> None:
        if done == self.epochs:
            raise KeyboardInterrupt


class Record:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, dict[str, float]]] = []

    def update(self, done: int, **numbers: float) -> None:
        self.updates.append((done, numbers))


# --- what an expert is


def test_one_snapshot_per_epoch_and_the_initialisation(make_config: MakeConfig) -> None:
    store = train_experts(make_config(epochs=3))
    assert store.snapshots_kept == [0, 1, 2, 3]
    initial = networks.build(store.manifest["network"])
    networks.initialise(initial, generator(0, "expert", 1, "initialisation"))
    assert torch.equal(store.snapshot(1, 0), networks.flat_parameters(initial))
    for before, after in itertools.pairwise(store.snapshot(1, epoch) for epoch in range(4)):
        assert not torch.equal(before, after)


@pytest.mark.parametrize("dsa", ["none", "color_crop_cutout_flip_scale_rotate"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.05)])
def test_is_the_sgd_of_torch(
    make_config: MakeConfig, dsa: str, momentum: float, weight_decay: float
) -> None:
    config = make_config(
        num_experts=1, epochs=2, dsa=dsa, lr=0.05, momentum=momentum, weight_decay=weight_decay
    )
    store = train_experts(config)

    dataset = load_dataset(config.data)
    model = networks.build(store.manifest["network"])
    networks.load_flat_parameters(model, store.snapshot(0, 0))
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=momentum, weight_decay=weight_decay
    )
    order, augmentation = generator(0, "expert", 0, "order"), generator(0, "expert", 0, "dsa")
    augment = DSA(dsa)
    for epoch in (1, 2):
        losses = []
        for batch in torch.randperm(36, generator=order).split(16):
            images = augment(dataset.normalise(dataset.train_images[batch]), augmentation)
            loss = F.cross_entropy(model(images), dataset.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item() * len(batch))
        torch.testing.assert_close(
            store.snapshot(0, epoch), networks.flat_parameters(model), rtol=1e-4, atol=1e-5
        )
        assert store.metrics(0)["train_loss"][epoch - 1] == pytest.approx(sum(losses) / 36, 1e-4)


def test_metrics_are_those_of_the_snapshots(make_config: MakeConfig) -> None:
    config = make_config(num_experts=1, epochs=2)
    store = train_experts(config)
    metrics = store.metrics(0)
    steps = [(store.snapshot(0, t + 1) - store.snapshot(0, t)).norm().item() for t in range(2)]
    assert metrics["displacement"] == pytest.approx(steps, rel=1e-5)

    dataset = load_dataset(config.data)
    model = networks.build(store.manifest["network"])
    networks.load_flat_parameters(model, store.snapshot(0, 2))
    predicted = model(dataset.normalise(dataset.test_images)).argmax(dim=1)
    right = (predicted == dataset.test_labels).double().mean().item()
    assert metrics["test_accuracy"] == pytest.approx(100 * right)


def test_learns(make_config: MakeConfig) -> None:
    losses = train_experts(make_config(num_experts=1, epochs=8, lr=0.1)).metrics(0)["train_loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_held_out_images_are_not_seen(make_config: MakeConfig) -> None:
    config = make_config(num_experts=1, holdout=0.25, seed=3)
    store = train_experts(config)
    dataset = load_dataset(config.data)
    training, images, labels = store.training_set(dataset)
    assert len(training.train_labels) == 27
    assert (len(images), len(labels)) == (9, 9)
    assert store.manifest["holdout"]["training_fingerprint"] == training.fingerprint
    assert store.manifest["preprocessing"]["mean"] == list(training.mean)
    without = train_experts(make_config(num_experts=1, seed=3, out=config.out.parent / "all"))
    assert not torch.equal(store.snapshot(0, 1), without.snapshot(0, 1))
    assert store.fingerprint != without.fingerprint


def test_a_held_out_part_that_changed_is_noticed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_experts=1, holdout=0.25)
    store = train_experts(config)
    dataset = load_dataset(config.data)
    other = dataset.without_holdout(0.25, seed=9)
    monkeypatch.setattr(type(dataset), "without_holdout", lambda *arguments: other)
    with pytest.raises(UserError, match="no longer gives the images"):
        store.training_set(dataset)


# --- whitening


def test_whitened_experts_are_those_of_whitened_images(make_config: MakeConfig) -> None:
    """The same training written out: plain SGD on images that were whitened beforehand."""
    config = make_config(num_experts=1, zca=True, holdout=0.25, dsa="none", batch_size=64)
    store = train_experts(config)
    training, _, _ = store.training_set(load_dataset(config.data))
    assert training.zca is not None
    expected = zca.fit(training.train_images)  # what is held out has no part in it
    assert torch.equal(training.zca.matrix, expected.matrix)
    assert store.manifest["preprocessing"] == {"kind": "zca", "eps": 0.1}

    model = networks.build(store.manifest["network"])
    networks.load_flat_parameters(model, store.snapshot(0, 0))
    inputs = expected.apply(training.train_images)
    torch.nn.functional.cross_entropy(model(inputs), training.train_labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= config.lr * parameter.grad
    torch.testing.assert_close(
        networks.flat_parameters(model), store.snapshot(0, 1), rtol=1e-4, atol=1e-6
    )
    networks.load_flat_parameters(model, store.snapshot(0, 2))
    predicted = model(expected.apply(training.test_images)).argmax(dim=1)
    right = (predicted == training.test_labels).double().mean().item()
    assert store.metrics(0)["test_accuracy"] == pytest.approx(100 * right)


def test_whitened_experts_are_the_same_in_processes_and_after_an_interruption(
    make_config: MakeConfig, contents: Contents
) -> None:
    whole = train_experts(make_config(zca=True))
    grown = make_config(zca=True, num_experts=1, out=whole.path.parent / "grown")
    train_experts(grown)
    train_experts(make_config(zca=True, out=grown.out, resume=True))
    assert contents(grown.out) == contents(whole.path)
    for expert in range(2):
        whole.expert_path(expert).unlink()
    train_experts(make_config(zca=True, resume=True, workers=2))
    assert contents(grown.out) == contents(whole.path)


def test_a_store_cannot_change_its_preprocessing(make_config: MakeConfig) -> None:
    train_experts(make_config())
    told = r"preprocessing = {'mean'.*, but this run has {'kind': 'zca'"
    with pytest.raises(UserError, match=told):
        train_experts(make_config(zca=True, resume=True))


def test_whitening_beyond_the_memory_leaves_no_store(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(zca=True)
    with monkeypatch.context() as little:
        little.setattr(memory, "available_memory", lambda: 10**5)
        with pytest.raises(UserError, match=r"ZCA, 64 x 64 numbers, take .* leave out --zca"):
            train_experts(config)
    assert not exists(config.out)
    train_experts(make_config())  # the same folder can be used without


# --- seeds


def test_same_seed_same_bytes(make_config: MakeConfig, tmp_path: Path, contents: Contents) -> None:
    for name in ("first", "second"):
        train_experts(make_config(out=tmp_path / name))
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    names = ["expert_0000.safetensors", "expert_0001.safetensors", "store.json"]
    assert sorted(contents(tmp_path / "first")) == names


def test_another_seed_gives_other_experts(make_config: MakeConfig, tmp_path: Path) -> None:
    first = train_experts(make_config(out=tmp_path / "first", num_experts=1))
    second = train_experts(make_config(out=tmp_path / "second", num_experts=1, seed=1))
    assert not torch.equal(first.snapshot(0, 0), second.snapshot(0, 0))


def test_experts_differ(make_config: MakeConfig) -> None:
    store = train_experts(make_config(epochs=1))
    assert not torch.equal(store.snapshot(0, 0), store.snapshot(1, 0))


def test_expert_does_not_depend_on_the_others(
    make_config: MakeConfig, tmp_path: Path, contents: Contents
) -> None:
    train_experts(make_config(out=tmp_path / "three", num_experts=3, epochs=1))
    train_experts(make_config(out=tmp_path / "one", num_experts=1, epochs=1))
    three, one = contents(tmp_path / "three"), contents(tmp_path / "one")
    assert three["expert_0000.safetensors"] == one["expert_0000.safetensors"]


def test_thread_count_of_the_caller_changes_nothing(
    make_config: MakeConfig, tmp_path: Path, contents: Contents
) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            train_experts(make_config(out=tmp_path / str(threads), num_experts=1))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


# --- interruption


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_resume_gives_the_bytes_of_an_uninterrupted_run(
    make_config: MakeConfig, tmp_path: Path, contents: Contents, epochs: int
) -> None:
    train_experts(make_config(out=tmp_path / "whole"))
    config = make_config(resume=True)
    with pytest.raises(KeyboardInterrupt):
        train_experts(config, Interruption(epochs))
    assert Store.open(config.out, complete=False).missing() == ([0, 1] if epochs < 3 else [1])
    record = Record()
    train_experts(config, record)
    assert contents(config.out) == contents(tmp_path / "whole")
    assert [done for done, _ in record.updates] == ([0, 1, 2, 3, 4] if epochs < 3 else [2, 3, 4])
    assert record.updates[-1][1]["expert"] == 1


def test_resume_of_a_complete_store_trains_nothing(
    make_config: MakeConfig, contents: Contents
) -> None:
    config = make_config(resume=True)
    train_experts(config)
    before = contents(config.out)
    record = Record()
    store = train_experts(config, record)
    assert store.missing() == []
    assert record.updates == [(4, {})]
    assert contents(config.out) == before


def test_resume_grows_a_store(make_config: MakeConfig, tmp_path: Path, contents: Contents) -> None:
    small = train_experts(make_config(num_experts=1))
    fingerprint = small.fingerprint
    grown = train_experts(make_config(num_experts=3, resume=True))
    assert grown.num_experts == 3
    assert (grown.identity, grown.fingerprint != fingerprint) == (small.identity, True)
    train_experts(make_config(out=tmp_path / "fresh", num_experts=3))
    assert contents(grown.path) == contents(tmp_path / "fresh")


def test_data_may_move(make_config: MakeConfig, tmp_path: Path, tiny_data: str) -> None:
    first = train_experts(make_config(num_experts=1))
    moved = tmp_path / "tiny.npz"
    moved.write_bytes(Path(tiny_data.removeprefix("npz:")).read_bytes())
    second = train_experts(make_config(num_experts=1, resume=True, data=f"npz:{moved}"))
    assert second.manifest["data"] == f"npz:{moved}"
    assert second.fingerprint == first.fingerprint


# --- refusals


def test_existing_store_without_resume(make_config: MakeConfig, contents: Contents) -> None:
    config = make_config(num_experts=1)
    train_experts(config)
    before = contents(config.out)
    with pytest.raises(UserError, match="already contains an expert store; add --resume"):
        train_experts(config)
    assert contents(config.out) == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lr": 0.5}, r"recipe\.lr = 0\.01, but this run has 0\.5"),
        ({"epochs": 3}, r"recipe\.epochs = 2, but this run has 3"),
        ({"batch_size": 5}, r"recipe\.batch_size = 16, but this run has 5"),
        ({"momentum": 0.5}, r"recipe\.momentum = 0\.0, but this run has 0\.5"),
        ({"weight_decay": 0.1}, r"recipe\.weight_decay"),
        ({"dsa": "flip"}, r"recipe\.dsa"),
        ({"width": 8}, r"network\.width = 4, but this run has 8"),
        ({"pooling": "max"}, r"network\.pooling = 'average', but this run has 'max'"),
        ({"seed": 7}, r"seed = 0, but this run has 7"),
        ({"holdout": 0.25}, r"holdout\.fraction = 0\.0, but this run has 0\.25"),
        ({"num_experts": 1}, r"num_experts = 2, but this run has 1; .* not shrink"),
    ],
)
def test_resume_of_another_configuration(
    make_config: MakeConfig, contents: Contents, changes: dict[str, Any], field: str
) -> None:
    config = make_config()
    with pytest.raises(KeyboardInterrupt):
        train_experts(config, Interruption(1))
    before = contents(config.out)
    with pytest.raises(UserError, match=field):
        train_experts(make_config(resume=True, **changes))
    assert contents(config.out) == before


def test_resume_with_other_data(make_config: MakeConfig, tiny_data: str, other_data: str) -> None:
    config = make_config(num_experts=1)
    train_experts(config)
    with pytest.raises(UserError, match=f"on {tiny_data}, but {other_data} holds other"):
        train_experts(make_config(num_experts=1, data=other_data, resume=True))


def test_foreign_folder(make_config: MakeConfig) -> None:
    config = make_config()
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis\.tex\)"):
        train_experts(config)
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]


def test_unwritable_folder(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/store"):
        train_experts(make_config(out=tmp_path / "file" / "store"))


def test_a_store_that_became_unwritable_is_found_before_training(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_experts(make_config(num_experts=1))

    def refuse(folder: Path) -> None:
        raise UserError(f"cannot write in the folder {folder}: read-only file system")

    monkeypatch.setattr("trajmatch.files.check_writable", refuse)
    with pytest.raises(UserError, match="read-only"):
        train_experts(make_config(num_experts=1, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "image_size"),
        ({"norm": "group", "width": 5}, "width"),
        ({"dsa": "wobble"}, "wobble"),
        ({"device": "toaster"}, "--device should be auto, cpu, cuda or cuda:N, but is 'toaster'"),
        ({"data": "npz:/nowhere.npz"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    config = make_config(**changes)
    with pytest.raises(UserError, match=message):
        train_experts(config)
    assert not config.out.exists()


@pytest.mark.parametrize("lr", [1e30, 1e6])
def test_divergence_names_epoch_loss_and_flag(make_config: MakeConfig, lr: float) -> None:
    """NaN, and a loss that stays finite but is far beyond that of guessing."""
    config = make_config(num_experts=1, epochs=8, lr=lr)
    with pytest.raises(
        UserError, match=r"expert 0 diverged in epoch \d: .* loss is .* --lr \(it is 1e"
    ):
        train_experts(config)
    assert Store.open(config.out, complete=False).missing() == [0]


def test_automatic_workers() -> None:
    assert automatic_workers("cpu") == torch.get_num_threads()
    assert automatic_workers("cuda:1") == 4
