"""Build the extension in a scratch folder, with the torch that is there and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_stages.settings import SOURCE, NotRun, Record, Settings

#: Folders and files of the source tree that neither the build nor the tests need.
LEFT_OUT = (".*", "__pycache__", "*.so", "results", "shared")


def run(settings: Settings, record: Record) -> None:
    """Copy the sources and build them for this device's architecture only."""
    if settings.installed:
        raise NotRun("--installed: the trajmatch that is there is used")
    copy_sources(Path(settings.root))
    environment = {**os.environ, "TRAJMATCH_CUDA": "1" if settings.device == "cuda" else "0"}
    if settings.device == "cuda" and "TORCH_CUDA_ARCH_LIST" not in environment:
        import torch

        environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    record.put("architectures", environment.get("TORCH_CUDA_ARCH_LIST"))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    status = subprocess.run(command, cwd=settings.root, env=environment, check=False).returncode
    if status != 0:
        record.fault(f"the build ended with status {status}")


def copy_sources(root: Path) -> None:
    """Copy the tree, with the objects of an earlier build in it, which are taken where current."""
    names = shutil.ignore_patterns(*LEFT_OUT)

    def ignored(folder: str, content: list[str]) -> set[str]:
        here = [name for name in content if Path(folder, name).resolve() == root.resolve()]
        return {*names(folder, content), *here}  # the scratch folder may be in the tree

    shutil.copytree(SOURCE, root, ignore=ignored, dirs_exist_ok=True)
