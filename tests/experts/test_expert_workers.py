"""Experts trained in several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, pool, train_experts

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


def test_a_worker_that_dies_is_noticed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with status 1; where memory is short"):
        train_experts(make_config(workers=2))
