"""Runs of several processes, started by torchrun as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from distill.conftest import write_data, write_store
from stand_ins import lines_of

from trajmatch.distill import DistillConfig, distill
from trajmatch.experts import Store
from trajmatch.memory import one_thread

EQUALITY = Path(__file__).with_name("rank_equality.py")
SETTINGS = {
    "ipc": 2,
    "iterations": 10,
    "student_steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 3,
    "batch_syn": 4,
    "lr_img": 10.0,
    "lr_init": 0.05,
    "checkpoint_every": 2,
    "matches": 2,
}
FLAGS = [
    part for key, value in SETTINGS.items() for part in (f"--{key.replace('_', '-')}", str(value))
]

# A matching term that kills the second process in its seventh iteration, in its first life. It is
# also called once before the first.
MORTAL = """
import os, signal
from trajmatch.distill.terms import Final

class Mortal(Final):
    calls = 0

    def loss(self, course):
        Mortal.calls += 1
        life = os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT")
        if Mortal.calls == 8 and life == ("1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(course)
"""


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    data = write_data(folder / "shapes.npz")
    write_store(folder / "mlp", data, network="mlp", width=128, depth=3)
    return write_store(folder / "store", data)


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Starts processes, on one thread each, that also find modules in ``tmp_path``."""

    def start(number: int, *arguments: object) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)])
        return subprocess.run(
            [*program, f"--nproc-per-node={number}", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.strip(os.pathsep)},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    return start


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_do_what_one_does(torchrun, experts, tmp_path, number) -> None:
    done = torchrun(number, EQUALITY, experts, tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in range(number):
        measured = json.loads((tmp_path / f"measured_{rank}.json").read_text())
        assert measured["processes"] == number
        # `--parallel batch`, after 20 outer iterations
        for name in ("float64", "float64, all parts"):
            assert max(measured[name].values()) < 1e-10, measured
        assert max(measured["float32"].values()) < 1e-5, measured
        for name in ("matches", "experts", "plan", "words"):
            assert all(measured[name].values()), measured


def test_a_killed_process_ends_all_and_torchrun_starts_them_again(
    torchrun, experts, tmp_path, monkeypatch
) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    run, alone = tmp_path / "run", tmp_path / "alone"
    done = torchrun(
        2,
        "--max-restarts=1",
        "-m",
        "trajmatch",
        "distill",
        "--experts",
        experts,
        "--out",
        run,
        "--resume",
        "--terms",
        "mortal:Mortal",
        *FLAGS,
    )
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    # The other one ends by the loss of the first or by torchrun's signal, perhaps before it can say
    # so; nothing is said twice.
    said = sum(map(done.stderr.count, ("trajmatch: error:", "trajmatch: stopped by")))
    assert said == done.stderr.count("continue with --resume") <= 1
    assert "distill 6/10" in done.stderr  # the second life begins at the last checkpoint
    assert done.stdout.count("6 images, step size") == 1
    monkeypatch.syspath_prepend(tmp_path)
    config = DistillConfig(experts=experts, out=alone, terms=("mortal:Mortal",), **SETTINGS)
    with one_thread():
        distill(config)
    assert run.read_bytes() == alone.read_bytes()
    assert [line["loss"] for line in lines_of(tmp_path / "run.jsonl")] == [
        line["loss"] for line in lines_of(config.log_path)
    ]


@pytest.mark.slow
def test_a_mistake_is_told_once(torchrun, experts, tmp_path) -> None:
    done = torchrun(
        2,
        "-m",
        "trajmatch",
        "distill",
        "--experts",
        experts,
        "--out",
        tmp_path / "d",
        *FLAGS,
        "--matches",
        1,
    )
    assert done.returncode != 0
    assert done.stderr.count("--matches 1 is below the 2 processes") == 1
    assert done.stderr.count("trajmatch: error:") == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_processes_train_experts_and_one_tells(torchrun, experts, tmp_path) -> None:
    store = Store.open(experts)
    settings = "--num-experts 2 --epochs 4 --batch-size 8 --lr 0.05 --width 4 --depth 1"
    arguments = ["--data", store.manifest["data"], "--out", tmp_path / "s", *settings.split()]
    done = torchrun(2, "-m", "trajmatch", "expert", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 experts") == 1
    for expert in range(2):
        path = store.expert_path(expert)
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_command_that_is_one_process_is_refused(torchrun, tmp_path) -> None:
    done = torchrun(2, "-m", "trajmatch", "demo", "--out", tmp_path / "demo")
    assert done.returncode != 0
    assert "torchrun started 2 processes, but trajmatch demo runs as one" in done.stderr
    assert not (tmp_path / "demo").exists()
