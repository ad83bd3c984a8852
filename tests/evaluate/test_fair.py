"""Baselines with the labels of the distilled set, what is stored of each, and robust scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_ins import each_network
from torch import Tensor

from trajmatch import artifact, networks
from trajmatch.cli.main import main
from trajmatch.cli.run import RunConfig, pipeline_of, table
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.evaluate import (
    EvalConfig,
    Outcome,
    TrainingSets,
    evaluate_artifact,
    herding,
    k_center,
    robust_score,
)
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.pipeline import run_pipeline

MakeArtifact = Callable[..., Path]

#: Logits of six images, the second of which has the largest for another class than the first.
LOGITS = torch.eye(3).repeat_interleave(2, 0) + torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]] * 3)
SOFT = {"labels": LOGITS, "label_kind": "logit"}


@pytest.fixture(scope="module")
def make_store(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        out = tmp_path_factory.mktemp("stores") / "experts"
        shape = {"num_experts": 2, "epochs": 2, "width": 4, "depth": 1}
        train_experts(ExpertConfig(out=out, data=tiny_data, seed=seed, **shape))
        return out

    return make


@pytest.fixture(scope="module")
def store(make_store: Callable[[int], Path]) -> Path:
    return make_store(0)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Networks are not trained; their sets are collected, and their accuracy is their number."""
    seen: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> Outcome:
        seen.append(arguments)
        return Outcome(float(len(seen)), None, False)

    monkeypatch.setattr("trajmatch.evaluate.distilled.train_networks", each_network(record))
    return seen


def matched_means(points: Tensor, count: int) -> list[int]:
    """Herding, by the mean of what is taken with each image that is left."""
    taken: list[int] = []
    while len(taken) < min(count, len(points)):
        left = [i for i in range(len(points)) if i not in taken]
        gaps = [(points[[*taken, i]].mean(0) - points.mean(0)).norm() for i in left]
        taken.append(left[int(torch.stack(gaps).argmin())])
    return taken


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_herding_matches_the_mean_of_each_class(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    points = torch.randn(40, 3, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=draw)
    wanted = []
    for k in range(3):
        members = (labels == k).nonzero().squeeze(1)
        wanted += members[matched_means(points[members], count)].tolist()
    assert herding(points, labels, count).tolist() == wanted


@pytest.mark.parametrize(
    ("soft", "options", "names"),
    [
        (False, {}, "distilled random_real"),
        (True, {}, "distilled distilled_hard random_real"),
        (True, {"distilled_hard": False, "random_baseline": False}, "distilled"),
        (
            True,
            {"experts": Path("e")},
            "distilled distilled_hard random_real random_real_soft k_center_soft",
        ),
        (
            False,
            {"experts": Path("e"), "random_baseline": False, "herding": True},
            "distilled k_center k_center_soft herding herding_soft",
        ),
        (
            False,
            {"robust": True, "random_baseline": False},
            "distilled random_real whole_real distilled_plain random_real_plain",
        ),
        (
            True,
            {"robust": True, "experts": Path("e"), "whole_real_accuracy": 80.0},
            "distilled distilled_hard random_real random_real_soft k_center_soft distilled_plain "
            "random_real_plain",
        ),
    ],
)
def test_which_sets(soft: bool, options: dict[str, Any], names: str) -> None:
    config = EvalConfig(file=Path("f"), seeds=2, epochs=4, **options)
    assert config.training_sets(soft) == names.split()
    assert config.total_rounds(soft) == 2 * 5 * len(names.split())


def test_labels_are_the_mean_logits_of_the_experts_that_are_right(
    make_artifact: MakeArtifact, tiny_data: str, store: Path
) -> None:
    dataset = load_dataset(tiny_data)
    sets = TrainingSets(artifact.load(make_artifact(**SOFT)), dataset, seed=3, experts=store)
    pixels, opened = dataset.normalise(dataset.train_images), Store.open(store)
    of_each = []
    for expert in range(2):
        model = networks.build(opened.manifest["network"]).eval()
        opened.load_into(model, expert, 2)
        with torch.no_grad():
            of_each.append(model(pixels))
    said = torch.stack(of_each)
    right = (said.argmax(2) == dataset.train_labels)[:, :, None].float()
    right = torch.where(right.sum(0) > 0, right, 1.0)
    wanted = (said * right).sum(0) / right.sum(0)

    center = k_center(of_each[0], dataset.train_labels, 2)
    herd = herding(of_each[0], dataset.train_labels, 2)
    for name, rows in (("k_center", center), ("herding", herd)):
        for suffix, labels in (("", dataset.train_labels), ("_soft", wanted)):
            images, found = sets.of(name + suffix, 0)
            assert torch.equal(images, pixels[rows])
            torch.testing.assert_close(found, labels[rows])
    for network in (0, 1):
        images, hard = sets.of("random_real", network)
        again, soft = sets.of("random_real_soft", network)
        plain = sets.of("random_real_plain", network)
        assert torch.equal(images, again) and hard.tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(plain[0], images) and torch.equal(plain[1], soft)
        rows = torch.tensor([int((pixels == each).flatten(1).all(1).nonzero()) for each in images])
        torch.testing.assert_close(soft, wanted[rows])
    assert torch.equal(sets.of("distilled_hard", 0)[1], LOGITS.argmax(1))


def test_what_is_stored(make_artifact: MakeArtifact, tiny_data: str, store: Path) -> None:
    parameters = {"places": torch.zeros(5, dtype=torch.uint8), "small": torch.zeros(6, 1, 4, 4)}
    file = make_artifact(**SOFT, parametrisation="mine", parameters=parameters)
    config = EvalConfig(file=file, data=tiny_data, seeds=1, epochs=1, experts=store)
    sizes = evaluate_artifact(config)["sets"]
    assert sizes["distilled"] == {
        **{"images": 6, "labels": "soft"},
        **{"stored_values": 6 * 16 + 5 + 18, "stored_bytes": 4 * (6 * 16 + 18) + 5},
    }
    assert sizes["distilled_hard"]["stored_bytes"] == 4 * 6 * 16 + 5 + 8 * 6
    assert sizes["random_real"] == {
        **{"images": 6, "labels": "hard"},
        **{"stored_values": 6 * 64, "stored_bytes": 4 * 6 * 64 + 8 * 6},
    }
    assert sizes["random_real_soft"]["stored_bytes"] == 4 * (6 * 64 + 18)


def test_experts_are_added_and_exchanged(
    make_artifact: MakeArtifact,
    tiny_data: str,
    store: Path,
    make_store: Callable[[int], Path],
    tmp_path: Path,
    trained: list[tuple[Any, ...]],
) -> None:
    file = make_artifact(**SOFT)

    def evaluate(**options: Any) -> dict[str, Any]:
        out = {"out": tmp_path / "out", "resume": True}
        return evaluate_artifact(EvalConfig(file=file, data=tiny_data, seeds=2, **out, **options))

    evaluate()
    assert len(trained) == 6
    first = evaluate(experts=store)
    assert len(trained) == 6 + 4
    evaluate(experts=make_store(1))
    assert len(trained) == 6 + 4 + 4
    assert evaluate(experts=store) == first and len(trained) == 6 + 4 + 4


# --- robust scores


def test_robust_scores_go_from_0_to_1() -> None:
    assert robust_score(-100.0, -100.0) == 0.0
    assert robust_score(100.0, 100.0) == 1.0
    wanted = (math.exp(-0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    assert robust_score(-20.0, -10.0) == pytest.approx(wanted)


@pytest.mark.parametrize("soft", [False, True])
def test_robust_scores_of_an_evaluation(
    make_artifact: MakeArtifact,
    tiny_data: str,
    store: Path,
    trained: list[tuple[Any, ...]],
    soft: bool,
) -> None:
    options: dict[str, Any] = {"experts": store, "whole_real_accuracy": 90.0} if soft else {}
    config = EvalConfig(
        **{"file": make_artifact(**(SOFT if soft else {})), "data": tiny_data},
        **{"seeds": 2, "robust": True, **options},
    )
    result = evaluate_artifact(config)
    whole = [90.0, 90.0] if soft else result["whole_real"]["accuracies"]
    of = {
        name: score and score["accuracies"]
        for name, score in result["networks"][0].items()
        if isinstance(score, dict) and "accuracies" in score
    }
    hard, random = ("distilled_hard", "random_real_soft") if soft else ("distilled", "random_real")
    recovery = [a - b for a, b in zip(whole, of[hard], strict=True)]
    improved = [a - b for a, b in zip(of["distilled"], of[random], strict=True)]
    plain = [a - b for a, b in zip(of["distilled_plain"], of["random_real_plain"], strict=True)]
    for name, values in {
        "hard_label_recovery": recovery,
        "improvement_over_random": improved,
        "improvement_without_augmentation": plain,
        "label_robust_score": [
            robust_score(i, -r) for i, r in zip(improved, recovery, strict=True)
        ],
        "augmentation_robust_score": [*map(robust_score, improved, plain)],
    }.items():
        assert result["robust"][name]["mean"] == pytest.approx(sum(values) / 2)
    protocols = [arguments[3].dsa for arguments in trained]
    assert protocols == ["flip_crop"] * (len(trained) - 4) + ["none"] * 4


def test_robust_scores_of_soft_labels_need_experts(
    make_artifact: MakeArtifact, tiny_data: str, trained: list[tuple[Any, ...]]
) -> None:
    config = EvalConfig(file=make_artifact(**SOFT), data=tiny_data, robust=True)
    with pytest.raises(UserError, match="name an expert store for the soft labels with --experts"):
        evaluate_artifact(config)
    assert not trained


# --- the command


def test_the_table_says_labels_and_bytes_and_what_is_missing(
    make_artifact: MakeArtifact,
    tiny_data: str,
    store: Path,
    trained: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["eval", str(make_artifact(**SOFT)), "--data", tiny_data, "--seeds", "1", "--quiet"]
    assert main(command) == 0
    table = capsys.readouterr().out
    advice = "to compare with soft-labelled real images, name an expert store with --experts"
    assert advice in " ".join(table.split())
    rows = [line.split() for line in table.splitlines() if "images" in line]
    # accuracies 1, 2 and 3 in the order of training
    for row in (
        "random real images hard 6 384 1,584 3.0 +- 0.0 1.89 3.0",
        "distilled images soft 6 402 1,608 1.0 +- 0.0 0.622 1.0",
        "distilled images hard 6 384 1,584 2.0 +- 0.0 1.26 2.0",
    ):
        assert row.split() in rows

    more = ["--experts", str(store), "--robust", "--whole-real-accuracy", "9"]
    assert main([*command, *more]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "name an expert store" not in text
    assert "real images by k-center soft 6" in text and "random real images soft 6" in text
    assert "k-center and herding measure distances between logits of expert 0 of experts" in text
    assert "label robust score 0." in text and "augmentation robust score 0." in text
    assert main([*command, *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["robust"]["label_robust_score"]["std"] == 0


def test_show_says_what_is_stored(
    make_artifact: MakeArtifact, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = make_artifact(**SOFT, scores=({"split": "test", "mean": 40.0},))
    assert main(["show", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(file.with_suffix(".png"))]
    said = "6 images, soft labels, 402 values in 1,608 bytes, test accuracy 40.0 %, 24.9 % per kB"
    assert err.strip() == said


def test_a_run_with_soft_labels_gives_its_experts(tiny_data: str, tmp_path: Path) -> None:
    shape = {"num_experts": 1, "epochs": 2, "width": 4, "depth": 1}
    short = {"iterations": 2, "student_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}
    stages = {
        "expert": shape,
        "distill": {**short, "labels": "soft", "lr_label": 1.0},
        "evaluate": {"seeds": 1, "epochs": 1, "robust": True},
    }
    config = RunConfig(recipe="cpu/demo", out=tmp_path / "run", data=tiny_data)
    made = pipeline_of(config, stages)
    assert made.expert is not None
    expert, distillation = (replace(each, recipe=None) for each in (made.expert, made.distill))
    summary = run_pipeline(replace(made, expert=expert, distill=distillation))
    names = ["distilled_hard", "random_real", "random_real_soft", "k_center_soft", "whole_real"]
    assert {*names, "distilled", "sets", "robust"} <= summary.keys()
    page = (tmp_path / "run" / "report.html").read_text()
    stored = summary["sets"]["random_real_soft"]
    assert stored == {**stored, "labels": "soft", "images": 3, "stored_values": 3 * (64 + 3)}
    for said in (
        "random real images, soft labels</th><td>201</td><td>804</td>",
        "points from random real images with soft labels",
        f"label robust score {summary['robust']['label_robust_score']['mean']:.3f} ± 0.000",
        "201 values, 804 bytes",
    ):
        assert said in page
    lines = [line.split() for line in table(summary).splitlines()]
    wanted = ["random", "real", "images", "soft", "3", "201", "804"]
    assert wanted in [line[: len(wanted)] for line in lines]
