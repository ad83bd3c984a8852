"""No room on the disk: what was written stays whole, the message says what could not be written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trajmatch import files
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.metrics import metrics_log
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file can grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_text(path: Path, size: int) -> None:
    files.write_text(path, "x" * size)


def write_tensors(path: Path, size: int) -> None:
    files.save_tensors(path, {"a": torch.zeros(size, dtype=torch.uint8)}, {})


@pytest.mark.parametrize("write", [write_text, write_tensors])
def test_a_file_that_cannot_grow(tmp_path: Path, write: Callable[[Path, int], None]) -> None:
    path = tmp_path / "x"
    write(path, 1000)
    before = path.read_bytes()
    with files_of_at_most(5000), pytest.raises(UserError, match=r"cannot write .*x: .*too large"):
        write(path, 100_000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("write", [write_text, write_tensors])
def test_a_file_system_that_is_full(full_disk: Path, write: Callable[[Path, int], None]) -> None:
    path = full_disk / "x"
    write(path, 1000)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"cannot write .*x: .*No space left on device"):
        write(path, 1_000_000)
    assert path.read_bytes() == before
    assert os.listdir(full_disk) == ["x"]


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is a device or a pipe; choose a file"):
        files.write_text(tmp_path / "pipe", "")
    assert (tmp_path / "pipe").is_fifo()


def test_a_log_that_cannot_grow_is_one_message_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with (
        files_of_at_most(100),
        pytest.raises(UserError, match=r"cannot write .*log: File too large"),
        metrics_log(path, 0) as log,
    ):
        for iteration in range(1, 50):
            log(iteration=iteration, loss=0.5)
    with metrics_log(path, 2):
        pass
    assert path.read_text().count("\n") == 2


def test_output_that_cannot_be_written_is_one_message() -> None:
    command = [sys.executable, "-m", "trajmatch", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "trajmatch: error: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_runs_go_on_after_a_full_disk_to_the_same_bytes(tmp_path: Path) -> None:
    """The disk is full after some iterations; what was there before is gone on from."""

    class Filling:
        def __init__(self, limit: int, at: int) -> None:
            self._limit, self._at = limit, at

        def update(self, done: int, **numbers: float) -> None:
            if done == self._at:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, hard))

    def experts(name: str, **settings: object) -> ExpertConfig:
        small = {"num_experts": 2, "epochs": 3, "width": 4, "depth": 1, "workers": 1}
        data = "fashion-mnist-mini?classes=0,1"
        out = tmp_path / name / "experts"
        return ExpertConfig(out=out, data=data, **{**small, **settings})

    def distillation(name: str, **settings: object) -> DistillConfig:
        small = {"iterations": 6, "student_steps": 2, "max_start_epoch": 1, "checkpoint_every": 2}
        out = tmp_path / name / "d"
        store = tmp_path / name / "experts"
        return DistillConfig(experts=store, out=out, **{**small, **settings})

    train_experts(experts("whole"))
    distill(distillation("whole"))

    with files_of_at_most(resource.RLIM_INFINITY), pytest.raises(UserError, match="cannot write"):
        train_experts(experts("part", checkpoint_seconds=0), Filling(2000, at=2))
    part = experts("part", resume=True)
    assert Store.open(part.out, complete=False).missing() == [0, 1]
    store = train_experts(part)
    for expert in range(2):
        wanted = tmp_path / "whole" / "experts" / store.expert_path(expert).name
        assert store.expert_path(expert).read_bytes() == wanted.read_bytes()

    run = distillation("part")
    with files_of_at_most(resource.RLIM_INFINITY), pytest.raises(UserError, match="cannot write"):
        distill(run, Filling(2000, at=3))
    files.load_tensors(run.checkpoint_path)
    distill(replace(run, resume=True))
    assert run.out.read_bytes() == (tmp_path / "whole" / "d").read_bytes()
