"""What is said of experts that are not worth matching."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch.experts import Store
from trajmatch.experts.health import examine, examine_window

EPOCHS = 6
FALLING = [2.0, 1.5, 1.2, 1.0, 0.9, 0.8]
HEALTHY = {
    "train_loss": FALLING,
    "displacement": [3.0, 2.0, 1.5, 1.0, 1.0, 1.0],
    "accuracy": [50.0] * EPOCHS,
    "test_accuracy": 60.0,
}


def store_of(path: Path, *experts: dict[str, Any]) -> Store:
    """A store of ten classes whose experts have such metrics."""
    manifest = {
        "data": None,
        "dataset": {
            "name": "toy",
            "fingerprint": "f",
            "class_names": list("abcdefghij"),
            "shape": [1, 8, 8],
        },
        "holdout": {"fraction": 0.0, "seed": 0, "training_fingerprint": "f"},
        "preprocessing": {"mean": [0.5], "std": [0.25]},
        "network": {"name": "ConvNet"},
        "recipe": {"epochs": EPOCHS},
        "seed": 0,
        "num_experts": len(experts),
        "dtype": "float32",
        "snapshots": [0, EPOCHS],
    }
    store = Store.create(path / "store", manifest)
    for number, changes in enumerate(experts):
        store.write_expert(number, torch.zeros(2, 3), {**HEALTHY, **changes})
    return store


def test_healthy_experts_show_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path, {}, {"displacement": [3.0, 2.0, 1.0, 0.1, 0.01, 0.004]})
    assert examine(store) == []
    assert examine_window(store, 0, 4, 2) == []


@pytest.mark.parametrize(
    ("sick", "said"),
    [
        ({"displacement": [3.0, 0.002, 1.0, 1.0, 1.0, 1.0]}, "expert 1 moved in one epoch less"),
        ({"displacement": [0.0] * EPOCHS}, "expert 1 moved in one epoch less"),
        ({"train_loss": [2.4, 2.5, 2.6, 2.7, 2.8, 9.0]}, "expert 1 diverged: .* lower --lr"),
        # It fell, but from where no expert gets that learns anything.
        (
            {"train_loss": [9e9, 7e9, 7e9, 7e9, 7e9, 7e9], "test_accuracy": 10.0},
            "expert 1 diverged: .* lower --lr",
        ),
        ({"test_accuracy": 12.0}, r"expert 1 reached less than 19\.0 % test accuracy \(10\.0 %"),
    ],
)
def test_a_sick_expert_is_named(tmp_path: Path, sick: dict[str, Any], said: str) -> None:
    (sentence,) = examine(store_of(tmp_path, {}, sick, {}))
    assert re.match(said, sentence)


def test_several_are_named_together(tmp_path: Path) -> None:
    bad = {"test_accuracy": 10.0}
    (sentence,) = examine(store_of(tmp_path, bad, bad, {}, bad))
    assert sentence.startswith("experts 0-1, 3 reached less")


def test_a_store_gets_one_advice(tmp_path: Path) -> None:
    """Experts of one learning rate cannot all need a lower and a higher one."""
    still = {"displacement": [3.0, 0.0, 0.0, 0.0, 0.0, 0.0], "test_accuracy": 10.0}
    bad = {"test_accuracy": 10.0}
    everything = {**still, "train_loss": [20.0, 65.0, 30.0, 9.0, 9.0, 9.0]}
    signs = examine(store_of(tmp_path, still, everything, bad))
    assert [re.match(r"experts? [\d-]+", sign)[0] for sign in signs] == [  # type: ignore[index]
        "expert 1",
        "expert 0",
        "expert 2",
    ]
    assert "lower --lr" in signs[0] and not any("--lr" in sign for sign in signs[1:])


def test_start_epochs_from_which_the_loss_falls_no_more(tmp_path: Path) -> None:
    flat = [2.0, 1.5, 1.0, 1.0, 1.0, 1.1]
    store = store_of(tmp_path, {"train_loss": flat}, {"train_loss": flat})
    # A segment of one epoch from s is compared with the epoch before it: 3 to 5 begin on the flat.
    (sentence,) = examine_window(store, 0, EPOCHS, 1)
    assert sentence.startswith("from start epochs 3-5, ")
    (sentence,) = examine_window(store, 0, 5, 2)
    assert sentence.startswith("from start epochs 3-4, ")
    assert examine_window(store, 0, 3, 1) == []
