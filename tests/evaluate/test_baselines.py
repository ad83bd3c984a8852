"""The real images that a distilled set is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trajmatch import artifact, networks
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, TrainingSets, evaluate_artifact, k_center
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.experts.store import Store

MakeArtifact = Callable[..., Path]


def farthest_points(points: Tensor, count: int) -> list[int]:
    """Greedy k-center, by looking at every pair of points each time."""

    def distance(a: Tensor, b: Tensor) -> float:
        return float(((a - b) ** 2).sum())

    mean = points.mean(dim=0)
    taken = [min(range(len(points)), key=lambda i: distance(points[i], mean))]
    while len(taken) < min(count, len(points)):
        left = [i for i in range(len(points)) if i not in taken]
        taken.append(max(left, key=lambda i: min(distance(points[i], points[j]) for j in taken)))
    return taken


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_k_center_is_greedy(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    points = torch.randn(40, 3, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=draw)
    wanted = []
    for k in range(3):
        members = (labels == k).nonzero().squeeze(1)
        wanted += members[farthest_points(points[members], count)].tolist()
    assert k_center(points, labels, count).tolist() == wanted


def test_k_center_covers_within_twice_the_best() -> None:
    # Four clusters of radius 0.1 and four centres: the best radius is at most 0.1.
    corners = torch.tensor([[0.0, 0.0], [0.0, 5.0], [5.0, 0.0], [5.0, 5.0]]).repeat(10, 1)
    points = corners + 0.07 * (2 * torch.rand(40, 2, generator=torch.Generator()) - 1)
    chosen = points[k_center(points, torch.zeros(40, dtype=torch.int64), 4)]
    assert torch.cdist(points, chosen).min(dim=1).values.max() <= 0.2


def test_k_center_takes_no_image_twice_where_all_are_equal() -> None:
    chosen = k_center(torch.ones(5, 2), torch.tensor([0, 0, 1, 1, 1]), 3)
    assert chosen.tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def store(tiny_data: str, tmp_path: Path) -> Path:
    path = tmp_path / "experts"
    train_experts(ExpertConfig(out=path, data=tiny_data, num_experts=1, epochs=2, width=4, depth=1))
    return path


def test_features_are_pixels_or_logits(
    make_artifact: MakeArtifact, tiny_data: str, store: Path
) -> None:
    dataset, distilled = load_dataset(tiny_data), artifact.load(make_artifact())
    pixels = dataset.normalise(dataset.train_images)
    chosen = k_center(pixels.flatten(1), dataset.train_labels, 2)
    images, labels = TrainingSets(distilled, dataset, 0).of("k_center", 0)
    assert torch.equal(images, pixels[chosen])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]

    opened = Store.open(store)
    model = networks.build(opened.manifest["network"]).eval()
    opened.load_into(model, 0, 2)
    with torch.no_grad():
        chosen = k_center(model(pixels), dataset.train_labels, 2)
    images, _ = TrainingSets(distilled, dataset, 0, store).of("k_center", 0)
    assert torch.equal(images, pixels[chosen])


def test_all_sets_in_one_call(make_artifact: MakeArtifact, tiny_data: str) -> None:
    seen: dict[str, int] = {}

    class Progress:
        def update(self, done: int, **numbers: float) -> None:
            seen["done"] = done

    config = EvalConfig(
        file=make_artifact(),
        data=tiny_data,
        seeds=2,
        equal_steps=7,
        batch_size=5,
        k_center=True,
        whole_real=True,
        protocol="ast",
    )
    result = evaluate_artifact(config, Progress())
    for name in ("distilled", "random_real", "k_center", "whole_real"):
        assert result[name]["seeds"] == len(result[name]["test_max"]["accuracies"]) == 2
    assert seen["done"] == 4 * 2 * 7
    wanted = {"name": "ast", "steps": 7, "batch_size": 5, "lr": 0.03, "dsa": "flip_crop"}
    assert result["protocol"] == {**result["protocol"], **wanted}
    assert result["selection"] == "last"
    assert result["k_center_features"] == "preprocessed pixels"


def test_the_whole_set_is_all_of_it(make_artifact: MakeArtifact, tiny_data: str) -> None:
    dataset = load_dataset(tiny_data)
    images, labels = TrainingSets(artifact.load(make_artifact()), dataset, 0).of("whole_real", 1)
    assert torch.equal(images, dataset.normalise(dataset.train_images))
    assert torch.equal(labels, dataset.train_labels)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equal_steps": 0}, "--equal-steps should be a whole number of at least 1, but is 0"),
        ({"equal_steps": 5, "epochs": 6}, "--equal-steps 5 and --epochs 6 both say how long"),
        ({"whole_real_accuracy": 80.0}, "--whole-real-accuracy only affects --robust"),
        ({"k_center_store": Path("experts")}, "--k-center-store is for --k-center and --herding"),
    ],
)
def test_options_that_contradict_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvalConfig(file=Path("file"), **changes)


def test_a_store_of_other_data_is_found_before_anything_is_trained(
    make_artifact: MakeArtifact,
    tiny_data: str,
    other_data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "other"
    train_experts(
        ExpertConfig(out=other, data=other_data, num_experts=1, epochs=1, width=4, depth=1)
    )

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("trajmatch.evaluate.distilled.train_networks", refuse)
    for path, message in ((other, f"trained on {other_data}"), (tmp_path / "no", "no")):
        config = EvalConfig(
            file=make_artifact(), data=tiny_data, k_center=True, k_center_store=path
        )
        with pytest.raises(UserError, match=message):
            evaluate_artifact(config)
