"""Target vectors beside the labels of a data set, for networks that regress them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trajmatch.data import Dataset, load_dataset
from trajmatch.errors import UserError

COUNT, TESTED = 12, 6


def arrays(**changes: Any) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    given = {
        "x_train": draw.integers(256, size=(COUNT, 8, 8), dtype=np.uint8),
        "y_train": np.arange(COUNT) % 3,
        "x_test": draw.integers(256, size=(TESTED, 8, 8), dtype=np.uint8),
        "y_test": np.arange(TESTED) % 3,
        "train_dino": draw.standard_normal((COUNT, 5)),
        "test_dino": draw.standard_normal((TESTED, 5)).astype(np.float32),
    }
    return {**given, **changes}


def load(tmp_path: Path, options: str = "?targets=dino", **content: Any) -> Dataset:
    np.savez(tmp_path / "pets.npz", **(content or arrays()))
    return load_dataset(f"npz:{tmp_path / 'pets.npz'}{options}")


def test_targets_are_read_where_the_address_names_them(tmp_path: Path) -> None:
    plain, dataset = load(tmp_path, ""), load(tmp_path)
    assert plain.train_targets is None and (plain.loss, plain.num_outputs) == ("cross_entropy", 3)
    assert torch.equal(plain.train_answers, plain.train_labels)
    assert dataset.name == "pets?targets=dino"
    assert (dataset.loss, dataset.num_outputs, dataset.num_classes) == ("mse", 5, 3)
    wanted = torch.from_numpy(arrays()["train_dino"]).float()
    assert torch.equal(dataset.train_answers, wanted)
    assert torch.equal(dataset.test_answers, torch.from_numpy(arrays()["test_dino"]))
    changed = load(tmp_path, **arrays(test_dino=np.zeros((TESTED, 5))))
    assert len({each.fingerprint for each in (plain, dataset, changed)}) == 3


def test_targets_follow_their_images(tmp_path: Path) -> None:
    dataset = load(tmp_path)
    rest, images, targets = dataset.without_holdout(0.25, 0)
    few = dataset.of_classes(["2", "0"])
    for part in (rest, few):
        for image, target in zip(part.train_images, part.train_answers, strict=True):
            (row,) = (dataset.train_images == image).flatten(1).all(1).nonzero()
            assert torch.equal(dataset.train_answers[row[0]], target)
    assert targets.shape == (3, 5) and len(images) == 3
    assert few.test_answers.shape == (4, 5)


def test_a_single_part_is_divided_with_its_targets(tmp_path: Path) -> None:
    content = {k: v for k, v in arrays().items() if "test" not in k}
    dataset = load(tmp_path, "?targets=dino&test=0.25", **content)
    whole = torch.from_numpy(content["train_dino"]).float()
    assert (len(dataset.train_answers), len(dataset.test_answers)) == (9, 3)
    rows = torch.cat([dataset.train_answers, dataset.test_answers])
    assert torch.equal(rows.sort(0).values, whole.sort(0).values)


def test_a_function_may_give_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "arrays.npz", **arrays())
    (tmp_path / "teacher.py").write_text(
        "import numpy as np\n"
        "from trajmatch.data import load_dataset\n"
        "def arrays():\n    return dict(np.load('arrays.npz'))\n"
        "def made():\n    return load_dataset('npz:arrays.npz?targets=dino')\n"
    )
    monkeypatch.chdir(tmp_path)
    wanted = load(tmp_path).fingerprint
    assert load_dataset("teacher:arrays?targets=dino").fingerprint == wanted
    assert load_dataset("teacher:made").fingerprint == wanted
    with pytest.raises(UserError, match=r"targets that it was made with; leave out \?targets=dino"):
        load_dataset("teacher:made?targets=dino")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_dino": None}, r"has no array train_dino \(given by \?targets=\); its arrays are "),
        ({"test_dino": None}, "has no array test_dino"),
        ({"train_dino": np.zeros((COUNT, 5), int)}, r"floating-point numbers per image, \[12, D\]"),
        ({"train_dino": np.zeros(COUNT)}, r"\[12, D\], but has shape \[12\]"),
        ({"test_dino": np.zeros((5, 5))}, r"\[6, D\], but has shape \[5, 5\]"),
        ({"test_dino": np.zeros((TESTED, 4))}, r"test targets should be .*\[6, 5\], but are "),
        ({"train_dino": np.full((COUNT, 5), np.nan)}, "training targets should be finite"),
        ({"train_dino": np.ones((COUNT, 5))}, "training targets should differ .* all equal"),
        ({"train_dino": np.zeros((COUNT, 0)), "test_dino": np.zeros((TESTED, 0))},
         r"training targets should be float32, .*\[12, 0\]"),
    ],
)  # fmt: skip
def test_unusable_targets_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    content = {name: each for name, each in arrays(**changes).items() if each is not None}
    with pytest.raises(UserError, match=match):
        load(tmp_path, **content)


def test_both_parts_have_targets_or_none(tmp_path: Path) -> None:
    dataset = load(tmp_path)
    with pytest.raises(UserError, match=r"test targets should be .*, but there are none"):
        dataclasses.replace(dataset, test_targets=None)
    with pytest.raises(UserError, match=r"training targets should be .*, but there are none"):
        dataclasses.replace(dataset, train_targets=None)
