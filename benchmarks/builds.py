"""Two builds of the project side by side: commits that are built here, or built checkouts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def built(name: str) -> Iterator[Path]:
    """Provide a built checkout.

    Args:
        name: The folder of a checkout that is built, or a commit, which is checked out and built in
            a temporary folder (minutes).
    """
    if Path(name).is_dir():
        yield Path(name).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="trajmatch-") as folder:
        checkout = str(Path(folder) / "checkout")
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", checkout, name], check=True)
        try:
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(build, cwd=checkout, check=True, stdout=sys.stderr)
            yield Path(checkout)
        finally:
            subprocess.run([*git, "remove", "--force", checkout], check=True)


def start(checkout: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Start a Python program that imports trajmatch from a checkout, with pipes to talk to it."""
    path = os.pathsep.join([str(checkout), str(HERE / "benchmarks")])
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def check_origin(module: Any, checkout: str) -> None:
    """Exit unless a module was imported from a checkout: an installed one may come before it."""
    if not Path(module.__file__).is_relative_to(checkout):
        raise SystemExit(f"trajmatch was imported from {module.__file__} instead of {checkout}")
