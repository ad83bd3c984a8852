"""Machine and origin of a record."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trajmatch import __version__
from trajmatch._extension import build_info

#: Settings of the threads that a time depends on.
ENVIRONMENT = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def machine(device: str) -> dict[str, Any]:
    """Return the facts that two records must have in common to be compared.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        What JSON can hold: ``device``, ``threads``, ``python``, ``torch`` and ``environment``.
    """
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def origin() -> dict[str, Any]:
    """Return version, commit and compiler of what is measured, and the date (UTC)."""
    return {
        "trajmatch": __version__,
        "commit": _commit(),
        "compiler": build_info()["compiler"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Return the commit of the source tree, with a + where files differ; None without git.

    Results that were measured do not count as differing.
    """
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
