"""Experts trained in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]


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


def test_interruption_ends_the_workers(
    make_config: MakeConfig, tmp_path: Path, contents: Contents
) -> None:
    class Interruption:
        def update(self, done: int, **numbers: float) -> None:
            if done == 1:
                raise KeyboardInterrupt

    train_experts(make_config(out=tmp_path / "whole", num_experts=3))
    config = make_config(num_experts=3, workers=2, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train_experts(config, Interruption())
    assert not [name for name in contents(config.out) if name.endswith(".tmp")]
    train_experts(make_config(num_experts=3, resume=True))
    assert contents(config.out) == contents(tmp_path / "whole")


def test_a_mistake_of_the_user_comes_back_from_a_worker(make_config: MakeConfig) -> None:
    config = make_config(lr=1e30, workers=2)
    with pytest.raises(UserError, match="diverged in epoch 1"):
        train_experts(config)
    assert Store.open(config.out, complete=False).missing() == [0, 1]


def test_an_orphan_stops_after_its_epoch(make_config: MakeConfig) -> None:
    config = make_config(num_experts=1, epochs=1)
    store = train_experts(config)
    store.expert_path(0).unlink()
    job = json.dumps({"store": str(config.out), "experts": [0], "device": "cpu"})
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody_reads:
        orphan = subprocess.run(
            [sys.executable, "-m", "trajmatch.experts.worker"],
            input=job + "\n",
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (orphan.returncode, orphan.stderr) == (1, "")
    assert store.missing() == [0]


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
