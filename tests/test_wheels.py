"""A wheel is built beside the torch here, and used in new environments without a compiler.

Where the registry has no torch for the CPU, pip brings the oldest torch with gigabytes of CUDA:
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`` spares that.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch_release

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow

# The whole of the program, as short as it goes.
DEMO = shlex.split(
    "demo --out demo --num-experts 1 --expert.epochs 1 --iterations 2 --student-steps 2 "
    "--expert-epochs 1 --max-start-epoch 1 --seeds 1 --evaluate.epochs 1 --quiet"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for the CPU; objects that an earlier build left in the source folder are used."""
    for tool in ("auditwheel", "build"):
        pytest.importorskip(tool)
    folder = tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns(
        ".git", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache"
    )
    shutil.copytree(ROOT, folder / "tree", ignore=skipped)
    command = [sys.executable, "_build/wheels.py", "cpu", "--out", str(folder / "out")]
    subprocess.run(command, cwd=folder / "tree", check=True)
    (made,) = (folder / "out").iterdir()
    return made


def test_a_wheel_is_for_many_linuxes_and_brings_no_library(wheel: Path) -> None:
    assert "-manylinux_" in wheel.name and "-linux_" not in wheel.name
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if ".so" in name]
    assert len(libraries) == 1 and libraries[0].startswith("trajmatch/_C.")


@pytest.mark.parametrize(
    "release",
    [metadata.version("torch"), f"2.{torch_release.OLDEST_MINOR}.0"],
    ids=["torch here", "oldest torch"],
)
def test_a_wheel_works_without_a_compiler(wheel: Path, tmp_path: Path, release: str) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    programs = tmp_path / "env/bin"
    environment = {**os.environ, "PATH": str(programs)}
    environment.pop("PYTHONPATH", None)

    def run(name: str, *arguments: str) -> str:
        command = [str(programs / name), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    run("pip", "install", "--quiet", "--only-binary=:all:", f"torch=={release}", str(wheel))
    assert not any(shutil.which(name, path=programs) for name in ("c++", "g++", "nvcc", "ninja"))

    where = run("python", "-c", "import trajmatch; print(trajmatch.__file__)")
    assert where.startswith(str(tmp_path / "env"))
    report = json.loads(run("trajmatch", "doctor", "--json"))
    assert report["passed"] and report["build"]["wheel"]
    assert report["versions"]["torch"].startswith(release)
    assert report["versions"]["torchvision"] == "not installed"
    run("trajmatch", *DEMO)
    assert json.loads((tmp_path / "demo/summary.json").read_text())
