"""benchmarks/reproduce.py on the CPU build, with the shipped data and recipes of a moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reproduce as program
import slices
from published import RANDOM_REAL, Published, distilled_baseline, random_baseline
from reproduce import SHARES, reproduce
from slices import SliceOver, Slices, duration

from trajmatch import artifact
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.recipes import Recipe, find_recipe, recipe_names

pytestmark = pytest.mark.harness

SMOKE_FILE = Path(program.__file__).parent / "smoke.toml"


def changed(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """The recipe with other values of some fields."""
    return replace(
        recipe, **{name: {**getattr(recipe, name), **new} for name, new in sections.items()}
    )


#: For a data set so small that an epoch would else be one step.
SMOKE = replace(
    changed(find_recipe(str(SMOKE_FILE)), expert={"batch_size": 32}, distill={"lr_lr": 1e-7}),
    data="few",
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
    monkeypatch.setattr(slices, "automatic_workers", lambda device: 1)
    monkeypatch.setattr(program, "CHECKPOINT_EVERY", 4)


def start(
    out: Path,
    budget: float = ENDLESS,
    slice_seconds: float | None = None,
    recipe: Recipe = SMOKE,
    **settings: object,
) -> dict:
    state = Slices(out / "state.json", budget, slice_seconds, Ticks())
    return reproduce(recipe, out, state, **settings)


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
        patch.setattr(slices, "automatic_workers", lambda device: 1)
        patch.setattr(program, "CHECKPOINT_EVERY", 4)
        return out, start(out, data=few)


def test_everything_is_in_the_result(whole) -> None:
    out, result = whole
    assert json.loads((out / "result.json").read_text()) == result
    assert result["counts"] == {
        "experts": {"done": 2, "wanted": 2},
        "iterations": {"done": 12, "wanted": 12},
        "networks": {"done": 2, "wanted": 2},
    }
    assert result["departures"] == []
    assert result["published"] == {"distilled": None, "random_real": None}
    assert result["slices"] == 1
    seconds = result["seconds"]
    assert seconds["all"] == sum(value for name, value in seconds.items() if name != "all")
    assert min(seconds[part] for part in ("experts", "distillation", "evaluation")) > 0
    assert result["fingerprint"] == artifact.load(out / "distilled.safetensors").fingerprint


def test_the_best_of_the_tests_with_experts_of_a_store(whole, few, tmp_path) -> None:
    folder, _ = whole
    recipe = changed(SMOKE, expert={"num_experts": 3, "batch_size": 16})
    store = folder / "experts"
    result = start(tmp_path, recipe=recipe, data=few, experts=store, test_every=4)
    assert not (tmp_path / "experts").exists()
    assert result["counts"]["experts"] == {"done": 2, "wanted": 3}
    assert result["departures"] == [
        "experts with batch_size 32 instead of 16",
        "2 experts instead of 3",
    ]
    tests = result["tests"]
    assert [each["iteration"] for each in tests] == [4, 8, 12]
    assert {each["seeds"] for each in tests} == {2}
    assert result["selection"] == "test-max"
    distilled = artifact.load(tmp_path / "distilled.safetensors")
    assert [score["protocol"]["epochs"] for score in distilled.scores] == [5, 5, 5]
    text = program.as_text(result)
    for each in tests:
        assert f"after iteration {each['iteration']}: {each['mean']:.1f}" in text
    with pytest.raises(UserError, match="of work with another experts"):
        start(tmp_path, recipe=recipe, data=few, test_every=4)


def test_first_images_and_labels_of_another_set(whole, few, tmp_path) -> None:
    folder, _ = whole
    first = folder / "distilled.safetensors"
    result = start(tmp_path, data=few, experts=folder / "experts", init_from=first)
    assert result["departures"] == [f"begun with file {artifact.load(first).fingerprint}"]
    with pytest.raises(UserError, match="of work with another init_from"):
        start(tmp_path, data=few, experts=folder / "experts")


def test_the_accuracies_are_those_of_trajmatch_eval(whole, few) -> None:
    out, result = whole
    file = out / "distilled.safetensors"
    scores = evaluate_artifact(EvalConfig(file=file, data=few, **SMOKE.evaluate))
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
        "1 experts instead of 2",
        "4 iterations instead of 12",
        "1 networks instead of 2",
    ]


def test_distillation_ends_with_its_share(few, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(program, "CHECKPOINT_EVERY", 2)
    recipe = changed(SMOKE, distill={"iterations": 1000})
    result = start(tmp_path, budget=60, recipe=recipe, data=few)
    spent = result["seconds"]["experts"] + result["seconds"]["distillation"]
    assert 2 < result["counts"]["iterations"]["done"] < 60
    assert SHARES["distillation"] * 60 - 10 < spent <= SHARES["distillation"] * 60 + 3


def test_a_finished_run_is_not_repeated(whole) -> None:
    out, result = whole
    assert start(out, budget=1) == result


def test_another_run_in_the_same_folder(whole) -> None:
    other = changed(SMOKE, distill={"terms": ("final", "intermediate")})
    with pytest.raises(UserError, match="of work with another seed, distill; write to a new place"):
        start(whole[0], recipe=other, seed=1)


def test_data_that_is_nowhere(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    with pytest.raises(UserError, match=r"'cifar10' is not found.*--data"):
        start(tmp_path, recipe=find_recipe("mtt/cifar10/ipc1"))
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match="for any data set; say which with --data"):
        start(tmp_path / "own", recipe=find_recipe("cpu/own/ipc1"))


def test_the_program_in_slices(few, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "find_recipe", lambda name: SMOKE)
    arguments = ["smoke", "--device=cpu", f"--data={few}", f"--out={tmp_path / 'run'}"]
    assert program.main([*arguments, "--slice=0.001s"]) == program.COME_AGAIN
    assert "the same command goes on" in capsys.readouterr().out
    assert program.main(arguments) == 0
    text = capsys.readouterr().out
    assert "(2 networks)" in text and "in 2 calls" in text


@pytest.mark.slow
def test_the_program_on_the_shipped_data(tmp_path) -> None:
    command = [sys.executable, program.__file__, SMOKE_FILE, "--device=cpu", f"--out={tmp_path}"]
    path = os.pathsep.join([str(SMOKE_FILE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}  # Python may not look beside its program
    statuses = [
        subprocess.run(
            [*command, *limit], env=environment, check=False, stdout=subprocess.DEVNULL
        ).returncode
        for limit in (["--slice=0.1s"], [])
    ]
    assert statuses == [program.COME_AGAIN, 0]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["distilled"]["seeds"] == 2


def test_a_mistake_ends_with_a_message(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        program.main([str(SMOKE_FILE), f"--out={tmp_path}", "--budget=soon"])
    assert "--budget: should be a duration such as 25m, but is 'soon'" in capsys.readouterr().err
    assert program.main(["mtt/cifar10/ipc01", f"--out={tmp_path}"]) == 2
    assert "did you mean mtt/cifar10/ipc1" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("1.5h", 5400)])
def test_durations(text, seconds) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "25", "m", "-5m", "0s", "5 m", "1h30m"])
def test_what_is_no_duration(text) -> None:
    with pytest.raises(ArgumentTypeError, match="25m"):
        duration(text)


TINY = {
    "expert": {"num_experts": 2, "epochs": 4, "keep": "all", "batch_size": 32, "width": 8},
    "distill": {
        "ipc": 1,
        "iterations": 3,
        "student_steps": 3,
        "max_start_epoch": 2,
        "lr_img": 1.0,
        "lr_lr": 1e-9,
    },
    "evaluate": {"epochs": 3, "seeds": 1},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ftd/cifar10/ipc1", {}),
        ("ast/cifar100/ipc1", {}),
        ("datm/cifar10/ipc1", {"skip_above": 1e6}),
    ],
)
def test_the_other_methods_at_a_tiny_scale(name, changes, few, tmp_path) -> None:
    recipe = changed(changed(find_recipe(name), **TINY), distill=changes)
    result = start(tmp_path, recipe=recipe, data=few + "?classes=0,8")
    assert result["departures"] == [f"the data set is 'few?classes=0,8' instead of {recipe.data!r}"]
    assert {count["done"] == count["wanted"] for count in result["counts"].values()} == {True}
    assert result["protocol"]["name"] == recipe.evaluate["protocol"]
    text = program.as_text(result)
    assert all(f"note: {note}" in text for note in recipe.notes)
    assert all(f"but: {departure}" in text for departure in result["departures"])
    published = distilled_baseline(recipe)
    told = "no published number" if published is None else f"published {published}"
    assert f"(1 networks); {told}" in text.splitlines()[1]


@pytest.mark.parametrize("name", recipe_names())
def test_published_numbers(name) -> None:
    recipe = find_recipe(name)
    random, distilled = random_baseline(recipe), distilled_baseline(recipe)
    # SelMatch's networks have batch norm.
    other = name.startswith(("cpu/", "selmatch/"))
    tested = recipe.data.partition("?")[0] in RANDOM_REAL and not other
    assert (random is not None) == tested
    if random is not None and distilled is not None:
        assert random.mean < distilled.mean < 100
        assert random.source and distilled.source


def test_numbers_beside_the_published_ones() -> None:
    recipe = find_recipe("mtt/cifar10/ipc10")
    assert str(random_baseline(recipe)) == "31.0 +- 0.5 % (DATM, main table, row random)"
    assert str(distilled_baseline(recipe)).startswith("65.3 +- 0.7 % (as quoted by NCFM")
    assert distilled_baseline(find_recipe("ast/cifar10/ipc10")) is None
    assert str(Published(48.5, None, "a table")) == "48.5 % (a table)"
