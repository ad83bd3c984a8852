"""The protocols of the papers, each against a loop of torch.optim written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajmatch import networks, ops, training
from trajmatch.errors import UserError
from trajmatch.evaluate import PROTOCOLS, EvalConfig, Outcome, Protocol, accuracy, train
from trajmatch.evaluate.scores import Score, evaluate_set
from trajmatch.random import derive_seed, generator
from trajmatch.training import train_fresh, train_networks

SPEC = networks.ConvNet(1, 3, 8, width=4, depth=1).spec()


def toy(count: int, soft: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=draw)
    return images, torch.randn(count, 3, generator=draw) if soft else torch.arange(count) % 3


def fresh(seed: int) -> nn.Module:
    return networks.initialise(networks.build(SPEC), generator(seed, "initialisation"))


def loop_by_hand(
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    drop: float,
    momentum_after: float,
    test: Callable[[nn.Module, int], None],
    seed: int,
) -> nn.Module:
    """``evaluate_synset`` as the papers' code has it, without augmentation."""
    model, order, lr = fresh(seed), generator(seed, "order"), 0.1
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    for epoch in range(epochs + 1):
        shuffled = (
            torch.randperm(len(images), generator=order)
            if len(images) > batch_size
            else torch.arange(len(images))
        )
        model.train()
        for batch in shuffled.split(batch_size):
            targets = labels[batch]
            targets = targets.softmax(dim=1) if targets.is_floating_point() else targets
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), targets).backward()
            optimiser.step()
        test(model, epoch)
        if epoch == epochs // 2 + 1:
            lr *= drop
            optimiser = torch.optim.SGD(
                model.parameters(), lr=lr, momentum=momentum_after, weight_decay=weight_decay
            )
    return model


def test_what_the_papers_code_has() -> None:
    common: dict[str, Any] = {"epochs": 1000, "momentum": 0.9}
    wanted = {
        "mtt": {"batch_size": 256, "weight_decay": 5e-4, "lr_drop": 0.1, "momentum_after": 0.9},
        "datm": {"batch_size": 128, "weight_decay": 5e-4, "lr_drop": 0.1, "momentum_after": 0.9},
        "ast": {"batch_size": 256, "weight_decay": 1e-3, "lr_drop": 0.5, "momentum_after": 0.8},
    }
    for name, numbers in wanted.items():
        for field, value in {**common, **numbers}.items():
            assert getattr(PROTOCOLS[name], field) == value
    test_every = {name: each.test_every for name, each in PROTOCOLS.items()}
    assert test_every == {"mtt": 0, "datm": 0, "rat": 0, "ast": 20}
    tested = [index for index in range(1001) if PROTOCOLS["ast"].tests_after(index)]
    assert tested == list(range(0, 1001, 20))
    assert [index for index in range(1001) if PROTOCOLS["mtt"].tests_after(index)] == [1000]


@pytest.mark.parametrize(
    ("name", "count", "soft", "rest"),
    [
        ("mtt", 270, False, (256, 5e-4, 0.1, 0.9)),
        ("datm", 140, True, (128, 5e-4, 0.1, 0.9)),
        ("ast", 270, False, (256, 1e-3, 0.5, 0.8)),
    ],
)
def test_is_the_loop_written_by_hand(
    name: str, count: int, soft: bool, rest: tuple[int, float, float, float]
) -> None:
    images, labels = toy(count, soft)
    test_images, test_labels = toy(60, seed=1)
    protocol = replace(PROTOCOLS[name], lr=0.1, dsa="none", epochs=22)
    tests: dict[int, float] = {}

    def test(model: nn.Module, epoch: int) -> None:
        if epoch % 20 == 0 or epoch == 22:
            model.eval()
            right = model(test_images).argmax(dim=1) == test_labels
            tests[epoch] = 100 * right.float().mean().item()

    by_hand = loop_by_hand(images, labels, 22, *rest, test, seed=3)
    trained = train(fresh(3), images, labels, protocol, seed=3)
    torch.testing.assert_close(
        networks.flat_parameters(trained), networks.flat_parameters(by_hand), rtol=1e-3, atol=1e-4
    )
    outcome = train_fresh(images, labels, SPEC, protocol, test_images, test_labels, seed=3)
    one_image = 100 / 60  # rounding may turn one over
    assert outcome.accuracy == pytest.approx(tests[22], abs=1.01 * one_image)
    assert not outcome.diverged
    if name == "ast":
        assert outcome.max_accuracy == pytest.approx(max(tests.values()), abs=1.01 * one_image)
    else:
        assert outcome.max_accuracy is None


def test_maximum_is_that_of_the_tests_and_the_score_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = iter([30.0, 80.0, 50.0])
    modes: list[bool] = []

    def scripted(model: nn.Module, *_: Any) -> float:
        modes.append(model.training)
        return next(found)

    monkeypatch.setattr("trajmatch.training.measured", scripted)
    protocol = Protocol(dsa="none", epochs=10, test_every=5)
    assert train_fresh(*toy(6), SPEC, protocol, *toy(6)) == Outcome(50.0, 80.0, False)
    assert modes == [True] * 3  # training went on after each test


def test_tests_on_the_way_change_nothing() -> None:
    images, labels = toy(6)
    spec = networks.ConvNet(1, 3, 8, width=4, depth=1, norm="batch").spec()
    once = Protocol(lr=0.1, epochs=9)
    accuracies = [
        train_fresh(images, labels, spec, protocol, *toy(60, seed=1)).accuracy
        for protocol in (once, replace(once, test_every=2))
    ]
    assert accuracies[0] == accuracies[1]


def test_no_such_protocol() -> None:
    with pytest.raises(
        UserError, match=r"one of ast, datm, mtt, rat, but is 'dat' \(did you mean datm"
    ):
        EvalConfig(file=Path("file"), protocol="dat")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one of ast, datm, mtt, rat, but is 'ftd'"):
        EvalConfig(file=Path("file"), protocol="ftd")  # type: ignore[arg-type]


# --- equal steps


@pytest.mark.parametrize("count", [5, 8, 20])
@pytest.mark.parametrize("steps", [1, 7, 12])
def test_every_set_gets_the_same_number_of_steps(count: int, steps: int) -> None:
    """As torch.optim does it, with the drop after the step that epochs of one batch have it at."""
    images, labels = toy(count)
    protocol = Protocol(lr=0.1, dsa="none", batch_size=8, steps=steps)
    heard: list[None] = []
    trained = train(fresh(2), images, labels, protocol, 2, lambda: heard.append(None))
    assert len(heard) == steps

    model, order, lr = fresh(2), generator(2, "order"), 0.1
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    left: list[Tensor] = []
    for step in range(steps):
        if not left:
            everything = torch.arange(count)
            shuffled = torch.randperm(count, generator=order) if count > 8 else everything
            left = list(shuffled.split(8))
        batch = left.pop(0)
        optimiser.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
        if step == (steps - 1) // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    torch.testing.assert_close(
        networks.flat_parameters(trained), networks.flat_parameters(model), rtol=1e-4, atol=1e-5
    )


def test_steps_of_one_batch_are_epochs() -> None:
    images, labels = toy(6)
    by_epochs = train(fresh(0), images, labels, Protocol(lr=0.1, epochs=10))
    by_steps = train(fresh(0), images, labels, Protocol(lr=0.1, steps=11))
    same = networks.flat_parameters(by_epochs), networks.flat_parameters(by_steps)
    assert torch.equal(*same)


@pytest.mark.parametrize(("steps", "interval", "tests"), [(1001, 20, 51), (100, 2, 51), (5, 1, 5)])
def test_steps_are_tested_as_often_as_epochs(steps: int, interval: int, tests: int) -> None:
    protocol = replace(PROTOCOLS["ast"], steps=steps)
    assert protocol.test_interval == interval
    assert sum(map(protocol.tests_after, range(steps))) == tests


def test_description_says_what_was_run() -> None:
    steps = replace(PROTOCOLS["ast"], steps=100).describe()
    assert (steps["name"], steps["steps"], steps["drop_step"]) == ("ast", 100, 50)
    assert "epochs" not in steps and "drop_epoch" not in steps
    assert steps["tested"].startswith(
        "every 2 steps and after the last step; the score is the last"
    )
    assert "chosen on the test set" in steps["tested"]
    assert PROTOCOLS["datm"].describe()["tested"] == "once, after the last epoch"


# --- networks side by side


@pytest.mark.parametrize("regresses", [False, True])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_networks_side_by_side_are_those_trained_alone(name: str, regresses: bool) -> None:
    protocol = replace(PROTOCOLS[name], lr=0.05, epochs=5, batch_size=4, test_every=2)
    sets = [(*toy(7, soft=regresses, seed=seed), seed) for seed in range(3)]
    tests = toy(60, soft=regresses, seed=9)
    rounds: list[None] = []
    model = networks.build(SPEC)
    together = training._side_by_side(model, protocol, tests, lambda: rounds.append(None), sets)
    alone = [
        train_fresh(images, labels, SPEC, protocol, *tests, seed) for images, labels, seed in sets
    ]
    assert together == alone and len(rounds) == 3 * protocol.num_rounds
    assert len({each.accuracy for each in together}) > 1


@pytest.mark.cuda
def test_networks_side_by_side_on_a_gpu() -> None:
    protocol = replace(PROTOCOLS["mtt"], lr=0.01, epochs=5)
    sets = [(*toy(7, soft=True, seed=seed), seed) for seed in range(3)]
    tests = toy(60, soft=True, seed=9)
    together = [*train_networks(sets, SPEC, protocol, tests, "cuda")]
    for (images, labels, seed), found in zip(sets, together, strict=True):
        wanted = train_fresh(images, labels, SPEC, protocol, *tests, seed, "cuda")
        assert found.accuracy == pytest.approx(wanted.accuracy, rel=1e-2)


def test_one_that_diverges_leaves_the_others_as_they_are() -> None:
    protocol = replace(PROTOCOLS["mtt"], lr=0.05, epochs=5, dsa="none")
    sets = [(*toy(7, seed=seed), seed) for seed in range(3)]
    lost = [sets[0], (sets[1][0] * float("nan"), *sets[1][1:]), sets[2]]
    tests, model = toy(60, seed=9), networks.build(SPEC)
    found = training._side_by_side(model, protocol, tests, lambda: None, lost)
    wanted = training._side_by_side(model, protocol, tests, lambda: None, sets)
    assert found == [wanted[0], Outcome(0.0, None, True), wanted[2]]


def test_a_network_is_trained_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.build({**SPEC, "norm": "batch"}).eval()
    modes, gradient = [], ops.gradient

    def look(model: nn.Module, *arguments: Any, **named: Any) -> Any:
        modes.append(model.training)
        return gradient(model, *arguments, **named)

    monkeypatch.setattr(networks, "build", lambda spec: model)
    monkeypatch.setattr(ops, "gradient", look)
    train_fresh(*toy(6), SPEC, Protocol(epochs=2), *toy(6))
    assert modes == [True] * 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sets_are_checked_and_may_be_none(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    assert [*train_networks([], SPEC, Protocol(), toy(6), device)] == []
    with pytest.raises(ValueError, match="at least one"):
        [*train_networks([(*toy(0), 0)], SPEC, Protocol(), toy(6), device)]


def test_sets_are_made_when_their_training_begins() -> None:
    made: list[int] = []

    def sets() -> Any:
        for seed in range(3):
            made.append(seed)
            yield *toy(6), seed

    for number, _ in enumerate(train_networks(sets(), SPEC, Protocol(epochs=1), toy(6))):
        assert made == [*range(number + 1)]
    assert len(made) == 3


@pytest.mark.parametrize(
    ("count", "spec", "device", "groups"),
    [
        (10, {}, "cuda", [5]),
        (2**19 // 64 // 2, {}, "cuda", [2, 2, 1]),
        (2**19 // 64, {}, "cuda", [1] * 5),
        (2**20 // 64, {}, "cuda", [1] * 5),
        (10, {"norm": "batch"}, "cuda", [1] * 5),
        (10, {}, "cpu", [1] * 5),
    ],
)
def test_small_networks_go_side_by_side_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, count: int, spec: Any, device: str, groups: list[int]
) -> None:
    found: list[int] = []

    def counting(*arguments: Any) -> list[Outcome]:
        *_, sets = arguments
        found.append(len(sets))
        return [Outcome(0.0, None, False) for _ in sets]

    monkeypatch.setattr(training, "_side_by_side", counting)
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    sets, protocol = [(*toy(count), seed) for seed in range(5)], Protocol(batch_size=10**9)
    outcomes = [*train_networks(sets, {**SPEC, **spec}, protocol, toy(6), device)]
    assert found == groups and len(outcomes) == 5


def test_fewer_networks_go_side_by_side_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets, protocol = [(*toy(6), seed) for seed in range(3)], Protocol(epochs=2, batch_size=4)
    alone = [*train_networks(sets, SPEC, protocol, toy(6))]
    found: list[int] = []

    def limited(model: nn.Module, courses: list[Any], *rest: Any) -> None:
        found.append(len(courses))
        if len(courses) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        take(model, courses, *rest)

    take = training._take
    monkeypatch.setattr(training, "_take", limited)
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    with pytest.warns(UserWarning, match="3 networks side by side; continuing with 2"):
        together = [*train_networks(sets, SPEC, protocol, toy(6), "cuda")]
    assert found == [3, 2, 1] and together == alone


# --- scores


def test_score_of_a_set() -> None:
    protocol = replace(PROTOCOLS["ast"], lr=0.1, epochs=5, dsa="none")
    given = *toy(6), SPEC, protocol, *toy(30, seed=1)
    score = evaluate_set(*given, seeds=2)
    assert score.protocol == {**protocol.describe(), "network": SPEC}
    alone = [train_fresh(*given, seed=derive_seed(0, "evaluate", network)) for network in range(2)]
    assert score.accuracies == tuple(each.accuracy for each in alone)
    assert score.max_accuracies == tuple(each.max_accuracy for each in alone)


def test_maximum_is_told_beside_the_score() -> None:
    outcomes = [Outcome(40.0, 60.0, False), Outcome(0.0, 50.0, True)]
    score = Score.of_outcomes(outcomes, {}).as_dict()
    assert (score["mean"], score["std"], score["diverged"]) == (20.0, 20.0, 1)
    assert (score["test_max"]["mean"], score["test_max"]["std"]) == (55.0, 5.0)
    assert "on the test set" in score["test_max"]["chosen"]
    assert "test_max" not in Score.of_outcomes([Outcome(1.0, None, False)], {}).as_dict()


def test_a_network_that_diverged_gets_nothing_right_and_is_counted() -> None:
    images, labels = toy(6)
    score = evaluate_set(images, labels, SPEC, Protocol(lr=1e30, epochs=3), images, labels, seeds=2)
    assert (score.accuracies, score.diverged) == ((0.0, 0.0), 2)
    assert accuracy(fresh(0), images, labels) > 0  # class 0 is there to be guessed
