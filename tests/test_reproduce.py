"""benchmarks/reproduce.py on the CPU build, with the shipped data and recipes of a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import reproduce as program
from reproduction import run
from reproduction.clock import Clock, SliceOver, duration
from reproduction.recipes import RECIPES, SHARES, Recipe
from reproduction.run import reproduce

from trajmatch import artifact
from trajmatch.data import load_dataset
from trajmatch.distill import DistillConfig
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig

NAME = "smoke/fashion-mnist-mini/ipc1"
#: For a data set so small that an epoch would else be one step.
SMOKE = replace(
    RECIPES[NAME],
    experts={**RECIPES[NAME].experts, "batch_size": 32},
    distill={**RECIPES[NAME].distill, "lr_lr": 1e-7},
)
ENDLESS = 1e9


class Ticks:
    """A clock on which every look takes a second."""

    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> float:
        self.seconds += 1
        return float(self.seconds)


@pytest.fixture(autouse=True)
def one_expert_at_a_time(monkeypatch) -> None:
    """Wherever these tests run: the number decides how the work is cut up."""
    monkeypatch.setattr(run, "automatic_workers", lambda device, width: 1)


def start(
    out: Path,
    budget: float = ENDLESS,
    slice_seconds: float | None = None,
    recipe: Recipe = SMOKE,
    **settings: object,
) -> dict:
    clock = Clock(out / "state.json", budget, slice_seconds, Ticks())
    return reproduce(NAME, recipe, out, clock, say=lambda text: None, **settings)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> str:
    """A few of the shipped images."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    dataset = load_dataset()
    np.savez(
        path,
        x_train=dataset.train_images[::30].squeeze(1).numpy(),
        y_train=dataset.train_labels[::30].numpy(),
        x_test=dataset.test_images[::10].squeeze(1).numpy(),
        y_test=dataset.test_labels[::10].numpy(),
    )
    return f"npz:{path}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few) -> tuple[Path, dict]:
    """The smoke recipe, done at once."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "automatic_workers", lambda device, width: 1)
        return out, start(out, data=few)


def test_everything_is_in_the_result(whole) -> None:
    out, result = whole
    assert json.loads((out / "result.json").read_text()) == result
    assert result["counts"] == {
        "experts": {"done": 2, "wanted": 2},
        "iterations": {"done": 12, "wanted": 12},
        "networks": {"done": 2, "wanted": 2},
    }
    assert result["departures"] == [] and result["published"] is None
    assert result["slices"] == 1
    seconds = result["seconds"]
    assert seconds["all"] == sum(value for name, value in seconds.items() if name != "all")
    assert min(seconds[part] for part in ("experts", "distillation", "evaluation")) > 0
    assert result["fingerprint"] == artifact.load(out / "distilled.safetensors").fingerprint


def test_the_accuracies_are_those_of_trajmatch_eval(whole, few) -> None:
    out, result = whole
    file = out / "distilled.safetensors"
    scores = evaluate_artifact(EvalConfig(file=file, data=few, seeds=2, epochs=SMOKE.eval_epochs))
    for name in ("distilled", "random_real", "protocol"):
        assert result[name] == scores[name]


def test_slices_give_the_same_as_one_run(whole, few, tmp_path) -> None:
    slices = 0
    while True:
        slices += 1
        try:
            result = start(tmp_path, slice_seconds=5, data=few)
            break
        except SliceOver:
            assert slices < 30
    assert slices > 3
    assert result["slices"] == slices
    for name in ("fingerprint", "distilled", "random_real", "counts"):
        assert result[name] == whole[1][name]


def test_a_small_budget_cuts_everything_short(few, tmp_path) -> None:
    result = start(tmp_path, budget=1, data=few)
    counts = {what: count["done"] for what, count in result["counts"].items()}
    assert counts == {"experts": 1, "iterations": 4, "networks": 1}
    assert result["departures"] == [
        "1 experts instead of 2, for want of time",
        "4 iterations instead of 12, for want of time",
        "1 networks instead of 2, for want of time",
    ]


def test_distillation_ends_with_its_share(few, tmp_path) -> None:
    recipe = replace(SMOKE, distill={**SMOKE.distill, "iterations": 1000}, checkpoint_every=2)
    result = start(tmp_path, budget=60, recipe=recipe, data=few)
    spent = result["seconds"]["experts"] + result["seconds"]["distillation"]
    assert 2 < result["counts"]["iterations"]["done"] < 60
    assert SHARES["distillation"] * 60 - 10 < spent <= SHARES["distillation"] * 60 + 3


def test_a_finished_run_is_not_repeated(whole) -> None:
    out, result = whole
    before = (out / "state.json").read_bytes()
    assert start(out, budget=1) == result
    assert (out / "state.json").read_bytes() == before


def test_another_recipe_in_the_same_folder(whole) -> None:
    with pytest.raises(UserError, match=r"'seed': 0.*'seed': 1"):
        start(whole[0], seed=1)


def test_data_that_is_nowhere(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    with pytest.raises(UserError, match=r"'cifar10' is not found.*--data"):
        start(tmp_path, recipe=RECIPES["mtt/cifar10/ipc1"])


def test_the_program_in_slices(few, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(program.RECIPES, NAME, SMOKE)
    arguments = [NAME, "--device=cpu", f"--data={few}", f"--out={tmp_path / 'run'}"]
    assert program.main([*arguments, "--slice=0.001s"]) == program.COME_AGAIN
    assert "the same command goes on" in capsys.readouterr().out
    assert program.main(arguments) == 0
    text = capsys.readouterr().out
    assert "(2 networks)" in text and "in 2 runs" in text


@pytest.mark.slow
def test_the_program_on_the_shipped_data(tmp_path) -> None:
    command = [sys.executable, program.__file__, NAME, "--device=cpu", f"--out={tmp_path}"]
    statuses = [
        subprocess.run([*command, *limit], check=False, stdout=subprocess.DEVNULL).returncode
        for limit in (["--slice=0.1s"], [])
    ]
    assert statuses == [program.COME_AGAIN, 0]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["distilled"]["seeds"] == 2


def test_a_mistake_ends_with_a_message(tmp_path, capsys) -> None:
    assert program.main([NAME, f"--out={tmp_path}", "--budget=soon"]) == 2
    assert "25m, but is 'soon'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("1.5h", 5400)])
def test_durations(text, seconds) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "25", "m", "-5m", "0s", "5 m", "1h30m"])
def test_what_is_no_duration(text) -> None:
    with pytest.raises(UserError, match="25m"):
        duration(text)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_the_configurations(name) -> None:
    recipe = RECIPES[name]
    ExpertConfig(out=Path("x"), **recipe.experts)
    config = DistillConfig(experts=Path("x"), out=Path("y"), **recipe.distill)
    assert config.max_start_epoch - 1 + config.expert_epochs == recipe.experts["epochs"]
    assert set(recipe.distill) <= {field.name for field in fields(DistillConfig)}
    assert name.split("/")[1:] == [recipe.data, f"ipc{config.ipc}"]
    if recipe.published is not None:
        assert recipe.published.random_real[0] < recipe.published.mean < 100
        assert recipe.published.source and recipe.published.random_source
