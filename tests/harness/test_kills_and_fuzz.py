"""Runs that are killed at random moments, and readers of damaged files; longer ones by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.harness

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> list[str]:
    """The lines that a script prints; it must find nothing wrong."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},  # PYTHONSAFEPATH leaves out the script's folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_killed_runs_end_in_the_same_bytes() -> None:
    (line,) = run("kill_runs.py", "--kills", "50")
    assert line.startswith("50 kills (") and ", 0 losses, " in line


def test_readers_refuse_damaged_files() -> None:
    *lines, _ = run("fuzz_readers.py", "--files", "300")
    assert len(lines) == 7
    for line in lines:
        assert line.endswith(", 0 failed")


@pytest.mark.slow
def test_killed_runs_often() -> None:
    (line,) = run("kill_runs.py", "--kills", "200", "--seed", "1")
    assert line.startswith("200 kills (")


@pytest.mark.slow
def test_readers_refuse_many_damaged_files() -> None:
    run("fuzz_readers.py", "--files", "10000", "--seed", "1")
