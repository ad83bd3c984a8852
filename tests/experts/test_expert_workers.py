"""Experts trained in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]


class Interruption:
    """Progress that presses ctrl-C after a number of epochs."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def update(self, done: int, **numbers: float) -> None:
        if done == self._epochs:
            raise KeyboardInterrupt


def test_workers_write_the_bytes_of_one(
    make_config: MakeConfig, tmp_path: Path, contents: Contents
) -> None:
    told: list[int] = []

    class Progress:
        def update(self, done: int, **numbers: float) -> None:
            told.append(done)

    for workers in (1, 2):
        told.clear()
        train_experts(
            make_config(out=tmp_path / str(workers), num_experts=3, epochs=1, workers=workers),
            Progress(),
        )
        assert told == [0, 1, 2, 3]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_workers_do_not_repeat_what_was_said_of_the_data(
    make_config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    with pytest.warns(UserWarning, match="has no test images"):
        train_experts(make_config(data=f"imagefolder:{tmp_path / 'pets'}", epochs=1, workers=2))
    assert capfd.readouterr() == ("", "")


def test_interruption_ends_the_workers(make_config: MakeConfig, contents: Contents) -> None:
    # Enough epochs for a worker that went on to be found out by a finished expert.
    config = make_config(epochs=500, workers=2)
    with pytest.raises(KeyboardInterrupt):
        train_experts(config, Interruption(1))
    left = set(contents(config.out))
    checkpoints = {f".expert_000{number}.checkpoint.safetensors" for number in range(2)}
    assert {"store.json"} <= left <= {"store.json"} | checkpoints


def test_ctrl_c_in_a_terminal(tmp_path: Path, tiny_data: str) -> None:
    small = "--num-experts 2 --epochs 5000 --width 4 --depth 2 --batch-size 16 --workers 2"
    command = [sys.executable, "-m", "trajmatch", "expert", "--data", tiny_data, *small.split()]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not (tmp_path / "store" / "store.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(2)  # for the workers to start; whether they train yet does not matter
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: to all of the group
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "stopped by SIGINT" in err and "continue with --resume" in err
    assert "Traceback" not in err


def test_a_mistake_of_the_user_comes_back_from_a_worker(make_config: MakeConfig) -> None:
    config = make_config(lr=1e30, workers=2)
    with pytest.raises(UserError, match="diverged in epoch 1"):
        train_experts(config)
    assert Store.open(config.out, complete=False).missing() == [0, 1]


def test_workers_import_what_this_process_does(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    """Neither the current folder nor what prints while Python starts changes anything."""
    train_experts(make_config(out=tmp_path / "alone", epochs=1, workers=1))
    here = tmp_path / "here"
    (here / "trajmatch").mkdir(parents=True)
    for name in ("random.py", "trajmatch/__init__.py"):
        (here / name).write_text("raise SystemExit('imported from the current folder')")
    (here / "sitecustomize.py").write_text("print('cluster profile loaded')")
    monkeypatch.delenv("PYTHONSAFEPATH")
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.chdir(here)
    train_experts(make_config(out=tmp_path / "two", epochs=1, workers=2))
    assert contents(tmp_path / "two") == contents(tmp_path / "alone")


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("exit 3", RuntimeError, "failed with exit status 3"),
        ("kill -9 $$", UserError, "killed by signal 9; if memory is short"),
        ("echo no JSON >&2; exit 1", RuntimeError, "failed with exit status 1"),
    ],
)
def test_a_worker_that_dies_is_noticed(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[Exception],
    message: str,
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(error, match=message):
        train_experts(make_config(workers=2))
