"""Scores over several networks, and the random real images they are compared with."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from trajmatch.data import Dataset, load_dataset
from trajmatch.evaluate import Protocol, Score, evaluate_set, random_subset, train_fresh
from trajmatch.random import derive_seed, generator


@pytest.fixture
def dataset(tiny_data: str) -> Dataset:
    return load_dataset(tiny_data)


def evaluate(dataset: Dataset, spec: dict[str, Any], **changes: Any) -> Score:
    return evaluate_set(
        dataset.normalise(dataset.train_images[:6]),
        dataset.train_labels[:6],
        spec,
        Protocol(lr=0.05, epochs=8, dsa="flip"),
        dataset.normalise(dataset.test_images),
        dataset.test_labels,
        **{"seeds": 3, **changes},
    )


def test_score_is_mean_and_population_deviation(
    dataset: Dataset, network_spec: dict[str, Any]
) -> None:
    score = evaluate(dataset, network_spec)
    assert score.seeds == len(score.accuracies) == 3
    assert score.mean == pytest.approx(sum(score.accuracies) / 3)
    assert score.std == pytest.approx(statistics.pstdev(score.accuracies))
    assert score.as_dict() == {
        "mean": score.mean,
        "std": score.std,
        "accuracies": list(score.accuracies),
        "seeds": 3,
        "diverged": 0,
    }


def test_population_deviation_of_known_numbers() -> None:
    score = Score((40.0, 50.0, 60.0), {})
    assert (score.mean, score.std) == (50.0, pytest.approx((200 / 3) ** 0.5))


def test_each_network_has_a_seed_of_its_own(dataset: Dataset, network_spec: dict[str, Any]) -> None:
    score = evaluate(dataset, network_spec)
    alone = [
        train_fresh(
            dataset.normalise(dataset.train_images[:6]),
            dataset.train_labels[:6],
            network_spec,
            Protocol(lr=0.05, epochs=8, dsa="flip"),
            dataset.normalise(dataset.test_images),
            dataset.test_labels,
            seed=derive_seed(0, "evaluate", network),
        ).accuracy
        for network in range(3)
    ]
    assert list(score.accuracies) == alone
    assert evaluate(dataset, network_spec, seeds=2).accuracies == score.accuracies[:2]
    assert evaluate(dataset, network_spec, seed=1).accuracies != score.accuracies


def test_protocol_says_how_to_repeat_it(dataset: Dataset, network_spec: dict[str, Any]) -> None:
    protocol = evaluate(dataset, network_spec).protocol
    assert protocol["network"] == network_spec
    wanted = {"name": "mtt", "lr": 0.05, "epochs": 8, "num_epochs": 9, "drop_epoch": 5}
    wanted |= {"batch_size": 256, "momentum": 0.9, "weight_decay": 5e-4, "lr_drop": 0.1}
    assert protocol == {**protocol, **wanted, "dsa": "flip"}


def test_random_subset_is_balanced_and_has_no_image_twice() -> None:
    labels = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2, 1, 0, 0])
    chosen = random_subset(labels, 2, generator(0, "draw"))
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(chosen.tolist())) == 6


def test_random_subset_takes_all_of_a_small_class() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    chosen = random_subset(labels, 2, generator(0, "draw"))
    assert labels[chosen].tolist() == [0, 0, 1]


def test_random_subset_follows_the_generator() -> None:
    labels = torch.arange(300) % 3
    first, again = (random_subset(labels, 5, generator(0, "draw")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_subset(labels, 5, generator(1, "draw")))


def test_random_subset_reaches_every_image() -> None:
    labels = torch.arange(12) % 3
    draw = generator(0, "draw")
    reached = {index for _ in range(100) for index in random_subset(labels, 1, draw).tolist()}
    assert reached == set(range(12))
