"""Runs that are killed at random moments and resumed."""

from __future__ import annotations

import os
import subprocess
import sys

import kill_runs
import pytest

pytestmark = pytest.mark.harness


@pytest.mark.parametrize(("kills", "seed"), [(50, 0), pytest.param(200, 1, marks=pytest.mark.slow)])
def test_killed_runs_end_in_the_same_bytes(kills: int, seed: int) -> None:
    command = [sys.executable, kill_runs.__file__, f"--kills={kills}", f"--seed={seed}"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kills} kills (") and ", 0 losses" in done.stdout
