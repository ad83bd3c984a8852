"""One process writes to a place at a time, and one that has ended locks nobody out."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trajmatch import files
from trajmatch.cli.main import main
from trajmatch.errors import UserError
from trajmatch.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from trajmatch.lock import locked
with locked(Path(sys.argv[1]), inside=True):
    print("held", flush=True)
    {then}
"""


def hold(path: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """A process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD.format(then=then), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_of_the_first_until_it_ends(tmp_path: Path) -> None:
    with hold(tmp_path / "out") as first:
        message = rf"out is being written by process {first.pid} on \S+ since \d{{4}}-.*--out"
        for _ in range(2):
            with pytest.raises(UserError, match=message), locked(tmp_path / "out", inside=True):
                pass
        first.kill()
        first.wait()
    with locked(tmp_path / "out", inside=True):
        assert os.listdir(tmp_path / "out") == [".lock"]
    assert os.listdir(tmp_path / "out") == []


def test_children_of_a_killed_process_keep_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_end.py").write_text(
        "import os, signal, time\n"
        "def work(job, emit):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    emit(os.getpid())\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    start = (
        "from slow_to_end import work\n"
        "    from trajmatch.children import children\n"
        "    with children(work, [{}]) as events:\n"
        "        print(next(events), flush=True)\n"
        "        time.sleep(60)"
    )
    with hold(tmp_path / "out", start) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        with pytest.raises(UserError, match="it and its child processes have ended"):
            locked(tmp_path / "out", inside=True).__enter__()
        os.kill(child, signal.SIGKILL)
    for _ in range(100):
        try:
            with locked(tmp_path / "out", inside=True):
                return
        except UserError:
            time.sleep(0.05)
    raise AssertionError("the lock outlived the processes")


def test_one_at_a_time_whoever_removes_the_file(tmp_path: Path) -> None:
    """Threads open, lock and remove the file in any order; flock is between open files."""
    entered, errors = [0], []

    def enter() -> None:
        for _ in range(200):
            try:
                with locked(tmp_path / "out"):
                    (tmp_path / "inside").mkdir()
                    entered[0] += 1
                    (tmp_path / "inside").rmdir()
            except UserError:
                pass
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and entered[0] > 0
    assert os.listdir(tmp_path) == []


def test_a_file_removed_between_open_and_lock_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def after_removal(descriptor: int, operation: int) -> None:
        if len(removed) < 3:
            removed.append((tmp_path / ".out.lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_removal)
    with locked(tmp_path / "out"):
        assert len(removed) == 3 and (tmp_path / ".out.lock").exists()


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.warns(UserWarning, match="file system without locks") as said,
        locked(tmp_path / "out"),
    ):
        assert os.listdir(tmp_path) == []
    assert said[0].filename == __file__  # not a line of the package, nor of contextlib


def test_a_full_disk_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match="out is being written by another process"),
    ):
        locked(tmp_path / "out").__enter__()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in the folder .*file"):
        locked(tmp_path / "file", inside=True).__enter__()


def test_the_current_folder_can_be_locked(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with locked(Path()):
        assert (tmp_path / ".here.lock").exists()


# --- commands

DATA = "fashion-mnist-mini?classes=0,1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and what was distilled from it."""
    folder = tmp_path_factory.mktemp("made")
    expert = "--num-experts 2 --epochs 2 --batch-size 500 --width 4 --depth 1 --workers 1 --quiet"
    distill = "--iterations 1 --student-steps 1 --expert-epochs 1 --max-start-epoch 1 --quiet"
    assert main(["expert", "--data", DATA, "--out", str(folder / "x"), *expert.split()]) == 0
    arguments = ["--experts", str(folder / "x"), "--out", str(folder / "d.safetensors")]
    assert main(["distill", *arguments, *distill.split()]) == 0
    return folder


@pytest.fixture
def contents(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    def read() -> dict[str, bytes]:
        found: Iterator[Path] = (path for path in tmp_path.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in found if "lock" not in path.name}

    return read


@pytest.mark.parametrize(
    ("locks", "inside", "command"),
    [
        ("new", True, f"expert --data {DATA} --out new --epochs 1 --width 4 --depth 1"),
        ("x", True, f"expert --data {DATA} --out x --epochs 1 --width 4 --depth 1 --resume"),
        ("n.checkpoint.safetensors", False, "distill --experts x --out n.safetensors"),
        ("n.checkpoint.safetensors", False, "distill --experts x --out n --resume"),
        ("log", False, "distill --experts x --out n --log log"),
        ("evaluation", True, f"eval d.safetensors --data {DATA} --out evaluation"),
        ("d.eval", True, f"eval d.safetensors --data {DATA} --resume"),
        ("new", True, f"run --recipe cpu/own/ipc1 --data {DATA} --out new"),
        ("new", True, f"demo --data {DATA} --out new --resume"),
        ("new", False, "store trim x --out new --experts 0"),
        ("new", False, "store merge x x --out new"),
        ("new", False, "convert x --out new"),
        ("new", False, "convert d.safetensors --out new"),
        ("new.npz", False, "export d.safetensors --to npz --out new.npz"),
        ("new", False, "export d.safetensors --to imagefolder --out new"),
    ],
)
def test_commands_wait_for_nobody_and_change_nothing(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    contents: Callable[[], dict[str, bytes]],
    locks: str,
    inside: bool,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_bytes("d.safetensors", (made / "d.safetensors").read_bytes())
    os.mkdir("x")
    for path in (made / "x").iterdir():
        files.write_bytes(f"x/{path.name}", path.read_bytes())
    with locked(Path(locks), inside=inside):
        before = contents()
        assert main(command.split()) == 2
        assert contents() == before
    error = capsys.readouterr().err
    assert f"error: {locks} is being written by process {os.getpid()} on" in error
    assert sorted(os.listdir()) == sorted({"d.safetensors", "x", *({locks} if inside else ())})
