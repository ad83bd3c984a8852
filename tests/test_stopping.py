"""Commands that are stopped by a signal or by --max-time go on with --resume to the same bytes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trajmatch import interruption
from trajmatch.cli.main import main
from trajmatch.distill import loop, selection
from trajmatch.distill.checkpoint import FORMAT
from trajmatch.files import read_metadata

DATA = "fashion-mnist-mini?classes=0,1"
EXPERT = "--num-experts 2 --epochs 2 --batch-size 500 --width 4 --depth 1 --workers 1 --quiet"
DISTILL = (
    "--iterations 6 --student-steps 2 --expert-epochs 1 --max-start-epoch 1 --checkpoint-every 100 "
    "--eval-every 3 --eval-seeds 1 --eval-epochs 1 --quiet"
)


def expert(out: Path, *more: str) -> int:
    return main(["expert", "--data", DATA, "--out", str(out), *EXPERT.split(), *more])


def distill(store: Path, out: Path, *more: str) -> int:
    return main(["distill", "--experts", str(store), "--out", str(out), *DISTILL.split(), *more])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experts") / "store"
    assert expert(out) == 0
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    out = tmp_path_factory.mktemp("whole") / "d.safetensors"
    assert distill(store, out) == 0
    return out


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something before the n-th call of a function of a module."""

    def install(module: Any, name: str, number: int, action: Callable[[], None]) -> None:
        function, calls = getattr(module, name), 0

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                action()
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, counted)

    return install


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def without_seconds(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{**line, "seconds": None} for line in lines]


@pytest.mark.parametrize(
    ("number", "status", "module", "name", "call", "iteration"),
    [
        (signal.SIGTERM, 143, loop, "outer_iteration", 2, 2),  # is finished
        (signal.SIGINT, 130, selection, "evaluate_set", 1, 3),  # is given up, and done again
        (signal.SIGHUP, 129, selection, "evaluate_set", 2, 6),
    ],
)
def test_a_signal_ends_a_distillation_with_a_checkpoint(
    store: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[..., None],
    number: signal.Signals,
    status: int,
    module: Any,
    name: str,
    call: int,
    iteration: int,
) -> None:
    out = tmp_path / "d.safetensors"
    before(module, name, call, send(number))
    assert distill(store, out) == status
    checkpoint = tmp_path / "d.checkpoint.safetensors"
    message = f"stopped by {number.name}; {checkpoint} has iteration {iteration}; continue with"
    assert message in capsys.readouterr().err
    metadata = read_metadata(checkpoint)
    assert (metadata["format"], metadata["progress"]["iteration"]) == (FORMAT, iteration)
    monkeypatch.undo()
    assert distill(store, out, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert without_seconds(tmp_path / "d.jsonl") == without_seconds(whole.with_suffix(".jsonl"))
    assert not checkpoint.exists()


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_second_distillation_is_refused_while_the_first_lives(
    store: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: Callable[..., None],
    more: list[str],
) -> None:
    out, statuses = tmp_path / "d.safetensors", []
    before(loop, "outer_iteration", 3, lambda: statuses.append(distill(store, out, *more)))
    assert distill(store, out, "--checkpoint-every", "1") == 0
    assert statuses == [2]
    assert f"is being written by process {os.getpid()} on" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert distill(store, out, "--resume") == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in whole.parent.iterdir()
    }


def times_up_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes the time be up when it is looked at for the n-th time, while there is a limit."""
    looked = 0
    remaining = interruption.remaining

    def seconds() -> float | None:
        nonlocal looked
        if remaining() is None:
            return None
        looked += 1
        return 0.0 if looked >= number else 100.0

    monkeypatch.setattr(interruption, "remaining", seconds)


def test_the_time_of_experts_is_up(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times_up_at(monkeypatch, 6)  # an epoch has four steps
    assert expert(tmp_path / "store", "--max-time", "2h") == 75
    message = "stopped by --max-time; {} has 0 of 2 experts and a checkpoint of those in training"
    assert message.format(tmp_path / "store") in capsys.readouterr().err
    monkeypatch.undo()
    assert expert(tmp_path / "store", "--resume", "--max-time", "2h") == 0
    for path in store.iterdir():
        assert (tmp_path / "store" / path.name).read_bytes() == path.read_bytes()


def test_the_time_of_a_whole_run_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        "[expert]\nnum_experts = 2\nepochs = 2\nbatch_size = 500\nwidth = 4\ndepth = 1\n"
        "[distill]\niterations = 4\nstudent_steps = 2\nexpert_epochs = 1\nmax_start_epoch = 1\n"
        "[evaluate]\nseeds = 1\nepochs = 1\n"
    )
    arguments = ["run", "--recipe", str(recipe), "--data", DATA, "--quiet"]
    arguments += ["--full-experts", "--expert.workers", "1"]

    def run(out: Path, *more: str) -> int:
        return main([*arguments, "--out", str(out), *more])

    assert run(tmp_path / "whole") == 0
    part = tmp_path / "part"
    for looks, text in (
        (4, "has 0 of 2 experts"),
        (19, "has iteration 2"),
        (8, "evaluation has 1 of 2 networks"),
    ):
        times_up_at(monkeypatch, looks)
        assert run(part, "--max-time", "1h", "--resume") == 75
        error = capsys.readouterr().err
        assert text in error and "continue with --resume" in error
        monkeypatch.undo()
    assert run(part, "--max-time", "1h", "--resume") == 0
    for name in ("distilled.safetensors", "experts/expert_0001.safetensors"):
        assert (part / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in part.iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("command", ["expert", "distill", "run", "eval"])
def test_a_time_that_is_none_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {
        "expert": ["--out", "x"],
        "distill": ["--experts", "x", "--out", "y"],
        "run": ["--recipe", "cpu/own/ipc1", "--out", "x", "--data", DATA],
        "eval": ["file"],
    }
    assert main([command, *arguments[command], "--max-time", "soon"]) == 2
    assert "should be a duration such as" in capsys.readouterr().err
