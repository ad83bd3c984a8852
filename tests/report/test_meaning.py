"""The page explains its numbers: test set, matching loss, recipe, experts, command."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.distill.terms import TERMS
from trajmatch.evaluate.scores import difference_error, sampling_error
from trajmatch.recipes import Recipe, find_recipe, load_recipe, recipe_names
from trajmatch.recipes.deviations import Deviation, deviations
from trajmatch.report.config import ReportConfig
from trajmatch.report.losses import of_no_step, verdict
from trajmatch.report.page import write_report

SETTINGS = {"terms": ["final"], "student_steps": 20, "expert_epochs": 2}


def page(run: Path, tmp_path: Path, **settings: object) -> str:
    config = ReportConfig(run=run, out=tmp_path / "page.html", **settings)
    write_report(config)
    return config.report.read_text(encoding="utf-8")


# --- the test set


@pytest.mark.parametrize(("accuracy", "images"), [(60.0, 75), (10.0, 40), (97.0, 300)])
def test_the_error_is_the_spread_over_test_sets_of_this_size(accuracy: float, images: int) -> None:
    draw = random.Random(0)
    measured = [
        100 * sum(draw.random() < accuracy / 100 for _ in range(images)) / images
        for _ in range(2000)
    ]
    spread = math.sqrt(sum((each - accuracy) ** 2 for each in measured) / len(measured))
    assert sampling_error(accuracy, images) == pytest.approx(spread, rel=0.06)
    half = sampling_error(50 / images, images)
    assert sampling_error(0, images) == pytest.approx(sampling_error(100, images)) == half > 0
    sure, other = ({"mean": mean, "std": 0.0, "seeds": 1} for mean in (accuracy, 50))
    both = difference_error(images, sure, other)
    assert both == pytest.approx(math.hypot(spread, 50 / math.sqrt(images)), rel=0.06)
    found = [1.0, 2.0, 6.0]  # the error of their mean is their sample deviation over sqrt(3)
    spread_out = {"mean": accuracy, "std": statistics.pstdev(found), "seeds": 3}
    more = difference_error(images, spread_out, other)
    assert more == pytest.approx(math.hypot(both, statistics.stdev(found) / math.sqrt(3)))


def test_a_gain_says_its_error(folder: Path, tmp_path: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["training_images"], summary["test_images"]) == (45, 21)
    shutil.copytree(folder, tmp_path / "run")
    for score, mean in (("distilled", 72.0), ("random_real", 60.0)):
        summary[score] |= {"mean": mean, "std": 0.0}
    for images, error, verdict_ in ((75, 7.7, "no more"), (7500, 0.8, "more")):
        summary["test_images"] = images
        (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
        content = page(tmp_path / "run", tmp_path)
        gain = f"+12.0 ± {error} points from random real images: {verdict_} than twice"
        assert gain in content
        assert f"45 for training, {images} for testing" in content


# --- the matching loss


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.8] * 10 + [0.5] * 10, "as low as in runs that gained 17 to 22 points"),
        ([0.9] * 10 + [0.7] * 10, "moves part of the way"),
        ([1.0] * 10 + [0.95] * 10, "moves a little"),
        ([1.0] * 20, "did not move towards the expert"),
        ([1.0] * 10 + [3.0] * 10, "ends farther from the expert than it started"),
        ([None, 0.8, 0.5, None], "from 0.80 to 0.50"),
        ([None, None], "never finite"),
    ],
)
def test_the_loss_has_a_meaning(losses: list[float | None], words: str) -> None:
    assert words in verdict(losses, SETTINGS)


def test_the_runs_that_are_published_are_called_as_they_came_out() -> None:
    record = Path(__file__).parents[2] / "benchmarks" / "results" / "comparison.json"
    for method, cells in json.loads(record.read_text())["cells"].items():
        terms = ["final", "intermediate"] if method == "AST" else ["final"]
        for run in (each for runs in cells.values() for each in runs):
            if run.get("matching_loss"):
                said = verdict(run["matching_loss"], {**SETTINGS, "terms": terms})
                good = "moves part of the way" if method == "AST" else "as low as in runs"
                assert good in said, (method, said)


@pytest.mark.parametrize(
    ("terms", "epochs", "unmoved"),
    [
        (["final"], 4, 1.0),
        (["final", "intermediate"], 4, 4.0),
        (["final", "intermediate-rising"], 4, 2.5),
        (["automatic", "deep:0.5", "dropout:ratio=0.25", "layers:*.bias=0"], 4, 4.0),
        (["final", "own.module:TERM"], 4, None),
        (["intermediate"], 1, None),
        (["final", "intermediate"], 10**9, 1e9),
        (["final"], 0, None),
        ("final", 4, None),
    ],
)
def test_a_loss_is_compared_with_that_of_no_step(
    terms: object, epochs: int, unmoved: float | None
) -> None:
    settings = {"terms": terms, "expert_epochs": epochs}
    assert of_no_step(settings) == unmoved
    if unmoved is not None and unmoved > 1:
        assert "did not move" in verdict([unmoved] * 3, settings)


@pytest.mark.parametrize("term", ["intermediate", "intermediate-rising"])
def test_the_loss_of_no_step_is_that_of_the_terms(term: str) -> None:
    course: Any = SimpleNamespace(
        start=torch.zeros(1), steps=20, epochs=7, distance=lambda waypoint: torch.ones(())
    )
    loss = TERMS[term]().loss(course).item()
    assert of_no_step({"terms": [term], "expert_epochs": 7}) == pytest.approx(loss)


# --- the recipe


@pytest.fixture
def distilled(folder: Path) -> Artifact:
    return artifact.load(folder / "distilled.safetensors")


@pytest.fixture
def own(tmp_path: Path, distilled: Artifact) -> Recipe:
    """The recipe of the run."""
    path = tmp_path / "own.toml"
    path.write_text(
        """
        [expert]
        num_experts = 2
        epochs = 3
        width = 4
        depth = 1
        [distill]
        ipc = 2
        lr_img = 10.0
        iterations = 12
        student_steps = 2
        expert_epochs = 1
        max_start_epoch = 2
        lr_init = 0.02
        [evaluate]
        seeds = 2
        epochs = 3
        """
    )
    return load_recipe(path, str(path))


def test_a_run_of_a_recipe_deviates_in_nothing(own: Recipe, distilled: Artifact) -> None:
    assert deviations(own, distilled) == []
    open_ = {name: value for name, value in own.distill.items() if name != "max_start_epoch"}
    (found,) = deviations(dataclasses.replace(own, distill=open_), distilled)
    assert found == Deviation("distill.max_start_epoch", 3, 2)  # as the run would make it out
    made = {**distilled.recipe, "optimiser_img": "adam", "clip_img": 1.0, "lr_lr": 0.0}
    assert [each[1:] for each in deviations(own, dataclasses.replace(distilled, recipe=made))] == [
        ("sgd", "adam"),
        (None, 1.0),
        (1e-5, 0.0),
    ]


@pytest.mark.parametrize(
    ("section", "field", "value", "was"),
    [
        ("expert", "epochs", 30, 3),
        ("expert", "width", 8, 4),
        ("expert", "norm", "group", "instance"),
        ("expert", "zca", True, False),
        ("expert", "num_experts", 100, 2),
        ("expert", "holdout", 0.1, 0.0),
        ("expert", "drop_easy", "1:0.1", None),
        ("distill", "freeze", 0.5, 0),
        ("distill", "lr_img", 7.0, 10.0),
        ("distill", "labels", "soft", "hard"),
        ("distill", "terms", ("final", "intermediate"), ["final"]),
        ("distill", "lr_init", 0.5, 0.02),
        ("distill", "optimiser_img", "adam", "sgd"),
        ("distill", "clip_img", 2.0, None),
        ("distill", "lr_lr", 0.0, 1e-5),
        ("distill", "dsa", "flip", "color_crop_cutout_flip_scale_rotate"),
        ("distill", "max_start_epoch", 1, 2),
        ("evaluate", "seeds", 5, 2),
        ("evaluate", "batch_size", 7, 256),
    ],
)
def test_every_setting_that_differs_is_named(
    own: Recipe, distilled: Artifact, section: str, field: str, value: object, was: object
) -> None:
    changed = dataclasses.replace(own, **{section: {**getattr(own, section), field: value}})
    (found,) = deviations(changed, distilled)
    wanted = list(value) if isinstance(value, tuple) else value
    assert found == Deviation(f"{section}.{field}", wanted, was)


def test_every_recipe_can_be_compared(distilled: Artifact) -> None:
    for name in recipe_names():
        assert deviations(find_recipe(name), distilled)


def test_a_set_from_elsewhere_can_be_compared(own: Recipe, distilled: Artifact) -> None:
    for recipe in ({}, {"experts": "unknown"}, {"experts": {"dsa": 3, "holdout": {}}}):
        for scores in ((), ({"split": "test"},), ({"split": "test", "protocol": {"name": 3}},)):
            deviations(own, dataclasses.replace(distilled, recipe=recipe, scores=scores))


def test_the_page_says_what_it_knows(folder: Path, tmp_path: Path, own: Recipe) -> None:
    assert "The run named no recipe." in page(folder, tmp_path)
    shutil.copytree(folder, tmp_path / "run")
    file = tmp_path / "run" / "distilled.safetensors"
    found = artifact.load(file)
    for name, words in (
        (own.name, "All settings are those of"),
        ("cpu/own/ipc1", "Settings that differ from the recipe cpu/own/ipc1"),
        ("gone.toml", "The recipe gone.toml cannot be read here"),
    ):
        recipe = {**found.recipe, "recipe": name}
        artifact.save(file, dataclasses.replace(found, recipe=recipe))
        (tmp_path / "run" / "distilled.snapshots.safetensors").unlink(missing_ok=True)
        assert words in page(tmp_path / "run", tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"command": "trajmatch run --out <x>", "experts": {"accuracies": [40.0, 60.0]}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    content = page(tmp_path / "run", tmp_path)
    assert "Made by <code>trajmatch run --out &lt;x&gt;</code>" in content
    assert "50.0 % (from 40.0 to 60.0, 2 experts)" in content
    assert "trained on all real images is not known here" in content


def test_an_evaluation_brings_numbers_and_all_real_images(
    artifact_path: Path, tmp_path: Path, evaluation: dict[str, object]
) -> None:
    evaluation["dataset"] = {"training_images": 45, "test_images": 21}
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    content = page(artifact_path, tmp_path, evaluation=(tmp_path / "eval.json",))
    assert "45 for training, 21 for testing" in content and "not known here" not in content
    assert "ConvNet: 60.0 % has a standard error of 10.7 points" in content
    assert "&lt;resnet18&gt;: 61.0 %" in content


@pytest.mark.parametrize(
    "changes",
    [{"test_images": 0}, {"training_images": "x"}, {"experts": {"accuracies": ["x"]}}],
)
def test_a_summary_of_something_else_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**summary, **changes}))
    with pytest.raises(ValueError, match="is not what `trajmatch run`"):
        page(tmp_path / "run", tmp_path)
