"""The disk that experts take, told before they are trained."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, train_experts

Usage = namedtuple("Usage", "total used free")


def config_of(path, **settings) -> ExpertConfig:
    small = {"num_experts": 2, "epochs": 3, "width": 8, "depth": 1, "workers": 1, "keep": "0-1"}
    return ExpertConfig(out=path / "store", **{**small, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "bfloat16"},
        {"norm": "batch"},
        {"keep": "0-2", "until_epoch": 2},
        {"keep": "0-2", "until_epoch": 2, "optimiser": "adam"},
    ],
)
def test_the_files_are_as_large_as_told(tmp_path, settings) -> None:
    told: list[str] = []
    store = train_experts(config_of(tmp_path, **settings), announce=told.append)
    files = sum(file.stat().st_size for file in store.path.glob("expert_*.safetensors"))
    (space,) = told
    experts, needed, free = space.replace(", ", ": ").split(": ")
    assert experts == "2 experts of 3 snapshots" and free.endswith(" GB free")
    assert 1e9 * float(needed.removesuffix(" GB of disk")) == pytest.approx(files, rel=0.1)


def test_a_full_disk_is_told_before_anything_is_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1000))
    with pytest.raises(
        UserError, match=r"little space for 2 experts of 3 snapshots: .* store fewer"
    ):
        train_experts(config_of(tmp_path))
    monkeypatch.undo()
    train_experts(config_of(tmp_path))
