"""Builds the extension in a scratch folder, with the torch that is there and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from gpu_stages.settings import NotRun, Record, Settings

#: What the build and the tests need of the source tree.
PARTS = (
    "_build",
    "csrc",
    "trajmatch",
    "tests",
    "benchmarks",
    "docs",
    "CHANGELOG.md",
    "CMakeLists.txt",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "requirements.txt",
    "pyproject.toml",
    "setup.py",
)


def run(settings: Settings, record: Record) -> None:
    """Copies the sources and builds them for this device's architecture only."""
    if settings.installed:
        raise NotRun("--installed: the trajmatch that is there is used")
    copy_sources(settings)
    environment = {**os.environ, "TRAJMATCH_CUDA": "1" if settings.device == "cuda" else "0"}
    if settings.device == "cuda" and "TORCH_CUDA_ARCH_LIST" not in environment:
        import torch

        environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    record.put("architectures", environment.get("TORCH_CUDA_ARCH_LIST"))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    status = subprocess.run(command, cwd=settings.root, env=environment, check=False).returncode
    if status != 0:
        record.fault(f"the build ended with status {status}")


def copy_sources(settings: Settings) -> None:
    """Copies the tree, and the objects of an earlier build in it, which are taken where current."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "results")
    for name in PARTS:
        part = settings.source / name
        if part.is_dir():
            shutil.copytree(part, settings.root / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(part, settings.root / name)
    for objects in (settings.source / "build").glob("objects-*"):
        shutil.copytree(objects, settings.root / "build" / objects.name, dirs_exist_ok=True)
