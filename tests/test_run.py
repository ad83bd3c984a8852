"""`trajmatch run`: a folder of images to a distilled file and an accuracy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trajmatch import artifact
from trajmatch.cli.main import main
from trajmatch.distill.config import DistillConfig
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, Store
from trajmatch.pipeline import as_far_as_read

RECIPE = """
title = "a recipe of one's own"

[expert]
num_experts = 2
epochs = 3
batch_size = 8
width = 4
depth = 1

[distill]
iterations = 4
student_steps = 2
expert_epochs = 1
max_start_epoch = 2
ema = 0.5

[evaluate]
seeds = 2
epochs = 3
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of different sizes in two classes, without a test folder."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number, name in enumerate(("bright", "dark")):
        (folder / name).mkdir()
        for index in range(20):
            pixels = draw.integers(0, 120, (12 + index % 3, 14, 3)) + 130 * (1 - number)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return str(path)


def run(*arguments: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a part of the images becomes the test set
        try:
            return main(["run", *arguments])
        except SystemExit as stop:  # what ends the program while it reads its arguments
            assert isinstance(stop.code, int)
            return stop.code


def test_a_folder_becomes_a_distilled_file(photos: Path, recipe: str, tmp_path: Path) -> None:
    out, data = tmp_path / "out", f"imagefolder:{photos}?size=12"
    arguments = ["--recipe", recipe, "--data", data, "--out", str(out), "--quiet"]
    assert run(*arguments, "--distill.lr-img", "7.5", "--evaluate.seeds", "1") == 0
    names = {path.name for path in out.iterdir()}
    assert {"experts", "distilled.safetensors", "initial.png", "report.html"} <= names
    summary = json.loads((out / "summary.json").read_text())
    result = artifact.load(out / "distilled.safetensors")
    assert (result.recipe["lr_img"], result.recipe["ema"]) == (7.5, 0.5)
    assert result.recipe["experts"]["batch_size"] == 8
    assert result.recipe["recipe"] == recipe
    assert summary["distilled"]["seeds"] == 1
    assert result.scores[-1]["mean"] == summary["distilled"]["mean"]
    # The file and the data alone give the score again.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = evaluate_artifact(
            EvalConfig(file=out / "distilled.safetensors", data=data, seeds=1, epochs=3)
        )
    assert alone["distilled"]["mean"] == result.scores[-1]["mean"]

    assert run(*arguments, "--resume", "--distill.lr-img", "7.5", "--evaluate.seeds", "1") == 0
    assert artifact.load(out / "distilled.safetensors").fingerprint == result.fingerprint


def test_what_is_there_is_not_touched(
    photos: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--recipe", recipe, "--data", f"imagefolder:{photos}?size=12", "--out", str(out)]
    assert run(*arguments, "--quiet") == 0
    assert run(*arguments) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_experts_are_trained_as_far_as_they_are_read(
    photos: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three epochs, or all of them: the distilled set is the same."""
    arguments = ["--recipe", recipe, "--data", f"imagefolder:{photos}?size=12", "--seeds", "1"]
    part, whole = ([*arguments, "--out", str(tmp_path / name)] for name in ("part", "whole"))
    said = (
        "experts are trained for only 2 of 3 epochs, because the distillation reads no later ones "
        "(--full-experts trains all 3)"
    )
    assert run(*part) == 0
    assert said in capsys.readouterr().err
    assert run(*whole, "--full-experts") == 0
    assert said not in capsys.readouterr().err
    experts = {"part": tmp_path / "part/experts", "whole": tmp_path / "whole/experts"}
    assert {name: Store.open(path).reached for name, path in experts.items()} == {
        "part": "epoch 2 of 3",
        "whole": "epoch 3",
    }
    made = {name: (path.parent / "distilled.safetensors") for name, path in experts.items()}
    assert made["part"].read_bytes() == made["whole"].read_bytes()
    summary = json.loads((tmp_path / "part/summary.json").read_text())
    assert (summary["experts"]["epoch"], summary["experts"]["epochs"]) == (2, 3)
    assert "2 experts, after epoch 2 of 3" in (tmp_path / "part/report.html").read_text()
    assert run(*part, "--resume", "--full-experts", "--quiet") == 0
    assert contents(experts["part"]) == contents(experts["whole"])


@pytest.mark.parametrize(
    ("flags", "until"),
    [
        ({}, 2),
        ({"init": "noise", "min_start_epoch": 0, "max_start_epoch": 1}, 1),
        ({"init": "correct"}, 3),
        ({"init": "correct", "init_from": Path("d.safetensors")}, 2),
        ({"init": "representative"}, 3),
        ({"labels": "soft"}, 3),
        ({"max_start_epoch": 9}, 3),  # is refused a moment later
    ],
)
def test_the_last_epoch_that_is_read(flags: dict[str, Any], until: int) -> None:
    expert = ExpertConfig(out=Path("e"), epochs=3)
    settings = {"expert_epochs": 1, "max_start_epoch": 2, **flags}
    distill = DistillConfig(experts=Path("e"), out=Path("d"), **settings)
    assert as_far_as_read(expert, distill).trained_epochs == until


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_flags_of_the_stages_and_experts_that_are_there(
    photos: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--recipe", recipe, "--data", f"imagefolder:{photos}?size=12", "--quiet"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(*data, "--out", str(first), "--ipc", "2", "--seeds", "1", "--lr", "0.02") == 0
    made = artifact.load(first / "distilled.safetensors")
    assert (made.ipc, made.recipe["experts"]["lr"]) == (2, 0.02)
    summary = json.loads((first / "summary.json").read_text())
    assert (summary["distilled"]["seeds"], summary["experts"]["number"]) == (1, 2)
    assert summary["command"].startswith("trajmatch run --recipe")
    before = contents(first / "experts")

    experts = ["--experts", str(first / "experts")]
    assert run(*data, "--out", str(second), *experts, "--ipc", "2", "--seeds", "1") == 0
    assert not (second / "experts").exists() and contents(first / "experts") == before
    assert (second / "distilled.safetensors").read_bytes() == (
        first / "distilled.safetensors"
    ).read_bytes()
    assert "experts" not in json.loads((second / "summary.json").read_text())["stage_seconds"]
    page = (second / "report.html").read_text()
    assert "expert.lr" in page and "distill.ipc" in page and "expert.epochs" not in page

    capsys.readouterr()
    third = tmp_path / "third"
    for more, message in (
        (["--lr", "0.5"], "--lr applies only when experts are trained, but --experts names"),
        (["--expert.epochs", "9"], "--expert.epochs applies only when experts are trained"),
        (["--max-start-epoch", "9"], "--max-start-epoch 9"),
    ):
        assert run(*data, "--out", str(third), *experts, *more) == 2
        assert message in capsys.readouterr().err
    other = data_of_another_size(tmp_path)
    assert run(*data, "--out", str(third), *experts, "--data", other) == 2
    assert "give the same data with --data" in capsys.readouterr().err
    assert run(*data, "--out", str(third), "--experts", str(tmp_path / "none")) == 2
    assert "is not a store of experts" in capsys.readouterr().err
    assert contents(first / "experts") == before


def data_of_another_size(folder: Path) -> str:
    labels = np.arange(20) % 2
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    path = folder / "other.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "cpu/own/ipc2"], "did you mean cpu/own/ipc1"),
        (["--recipe", "mtt/cifar10/ipc1"], "'cifar10' is in no folder that TRAJMATCH_DATA lists"),
        (
            ["--recipe", "cpu/own/ipc1", "--distill.ipc", "0"],
            "--distill.ipc should be a whole number of at least 1",
        ),
        (
            ["--recipe", "cpu/own/ipc1", "--objective", "train-and-test"],
            "recipe cpu/own/ipc1 sets --student-st",
        ),
    ],
)
def test_mistakes_are_told_before_any_work(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    assert run(*arguments, "--out", str(tmp_path / "out")) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "experts").exists()


def test_what_would_fail_later_or_harm_is_refused_first(
    recipe: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(photos.rglob("*"))
    data = ["--recipe", recipe, "--data", f"imagefolder:{photos}?size=12"]
    assert run(*data, "--out", str(photos)) == 2
    assert "is not the folder of a run: it holds the folder bright" in capsys.readouterr().err
    assert sorted(photos.rglob("*")) == before
    assert run(*data, "--out", str(tmp_path / "out"), "--max-start-epoch", "9") == 2
    assert "--max-start-epoch 9 with --expert-epochs 1 needs" in capsys.readouterr().err
    assert run(*data, "--out", str(tmp_path / "out"), "--terms", "layers:conv1.*=2") == 2
    assert "no parameter of the network fits 'conv1.*'; it has" in capsys.readouterr().err
    assert run(*data, "--out", str(tmp_path / "out"), "--evaluate.network", "alexnet", "rsnet") == 2
    assert "--evaluate.network rsnet: expected the network to be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
