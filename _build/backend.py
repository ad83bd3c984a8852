"""In-tree PEP 517 and 660 backend: builds against the torch of the environment it installs into.

A build backend normally lists what it needs and pip makes a separate environment of that. With
torch in the list, this would download a second torch, not always the one that the package then
runs with. pip runs the hooks with the interpreter of the target environment, though; so this
backend asks that interpreter for its own packages and, when torch is among them, builds against it:
nothing is downloaded and nothing replaced. Everything else is left to setuptools.

Without a torch in sight (an empty environment, or a front end such as uv and ``python -m build``,
which give the backend an interpreter of its own) it requires ``FALLBACK_TORCH`` for the build. The
requirement of torchvision that setup.py then writes belongs to that torch and pins it, so the same
release is what the package runs with.

Where torch has CUDA and no nvcc serves, it requires the packages that hold nvcc, for the build
alone. Where they cannot be had, as offline, the package is built without the CUDA kernels.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import python_release  # noqa: F401  stops where Python is too old
from cuda_toolkit import CudaUnavailable, choose_nvcc, nvcc_packages
from ninja_build import find_ninja
from torch_release import find_torch

FALLBACK_TORCH = "torch==2.13.0"
FALLBACK_CUDA = "13.0"  # that of PyPI's FALLBACK_TORCH
SETUPTOOLS = "setuptools>=77"  # the first that knows `license = "MIT"` as an SPDX expression
PYBIND11 = "pybind11>=2.13"
NINJA = "ninja>=1.11"  # the first that times a file by the beginning of its command

Settings = dict[str, "str | list[str] | None"] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What pip must install before it calls :func:`build_wheel`."""
    _import_from_target()
    torch = find_torch()
    ninja = [] if find_ninja() else [NINJA]
    if torch is None:
        return [SETUPTOOLS, PYBIND11, *ninja, FALLBACK_TORCH, *_nvcc(FALLBACK_CUDA)]
    # pybind11 is not asked for here: torch brings a copy of its headers, so that this needs no
    # network; setup.py prefers an installed pybind11.
    found = metadata.distributions(name="setuptools")
    recent = any(int(each.version.split(".")[0]) >= 77 for each in found)
    return [*([] if recent else [SETUPTOOLS]), *ninja, *_nvcc(torch.cuda)]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """What pip must install before it calls :func:`build_sdist`: nothing is compiled."""
    return [SETUPTOOLS]


def build_wheel(
    directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Builds the wheel."""
    for left_by_earlier_build in Path("build").glob("lib*"):  # a module deleted since would go in
        shutil.rmtree(left_by_earlier_build)
    return _setuptools().build_wheel(directory, config_settings, metadata_directory)


def __getattr__(hook: str) -> Any:
    """Every other hook is the one of setuptools."""
    return getattr(_setuptools(), hook)


def _nvcc(torch_cuda: str | None) -> list[str]:
    """The packages that hold nvcc, where the kernels are wanted, no nvcc serves, and pip gets them.

    A requirement that cannot be met would end the build. A front end without pip has to fetch torch
    in any case, and is not asked.
    """
    packages = nvcc_packages(torch_cuda)
    if packages is None or os.environ.get("TRAJMATCH_CUDA") == "0":
        return []
    try:
        choose_nvcc(torch_cuda)
    except (CudaUnavailable, SystemExit):
        return [packages] if find_spec("pip") is None or _pip_gets(packages) else []
    return []


def _pip_gets(requirement: str) -> bool:
    """Ask pip, for a few seconds at most, if it would find a requirement."""
    calling = Path(f"/proc/{os.getppid()}/cmdline")  # pip tells a backend nothing of its options
    if calling.exists() and b"--no-index" in calling.read_bytes().split(b"\0"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-user"]
        options = ["--ignore-installed", "--prefix", folder, "--retries", "0", "--timeout", "15"]
        command = [*pip, *options, requirement]
        return subprocess.run(command, env=_outside(), capture_output=True).returncode == 0


def _outside() -> dict[str, str]:
    """The environment variables without those of pip's isolation."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}


def _import_from_target() -> None:
    """Makes importable what the target has, behind the packages of the build environment."""
    code = "import json, sys; print(json.dumps([path for path in sys.path if path]))"
    answer = subprocess.check_output([sys.executable, "-c", code], env=_outside())
    sys.path.extend(path for path in json.loads(answer) if path not in sys.path)


def _setuptools() -> Any:
    """Setuptools' own backend, which finds the target's torch."""
    _import_from_target()
    from setuptools import build_meta

    return build_meta
