"""Builds trajmatch with CUDA against a torch with CUDA and checks it; needs no GPU.

Not a test that pytest collects: it downloads about 3 GB and takes 6 GB of disk and a few minutes.
Run it from anywhere after a change to the build or to the list of operators::

    python tests/cuda_build/check_cuda_build.py
    python tests/cuda_build/check_cuda_build.py --torch 2.13.0 --python python3.12 --folder venv

It makes a virtual environment, installs the given torch from the package index, installs trajmatch
from a copy of this source tree with ``TRAJMATCH_CUDA=1`` (nvcc must be installed), and then, inside
the environment: imports the extension, runs the self-test of ``trajmatch doctor`` on the CPU, and
requires of every operator a kernel for CPU, CUDA, Meta and Autograd. It ends with status 1 and the
operators at fault where one is missing. With ``--folder`` the environment is kept and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
REQUIRED_KEYS = {"CPU", "CUDA", "Meta", "Autograd"}
# What a fake tensor on a CUDA device shows without a GPU: that shapes and devices come out right.
FAKE_CALL = """
import torch
import trajmatch.ops
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    student, target, start = (torch.empty(10, device="cuda") for _ in range(3))
    loss = trajmatch.ops.param_distance(student, target, start)
    assert loss.shape == () and loss.device.type == "cuda", loss
"""


def main() -> int:
    """Runs all steps; the status is 1 where an operator lacks a kernel."""
    arguments = parse_arguments()
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ:
        print("There is no nvcc on the PATH and CUDA_HOME is not set: the kernels cannot be built.")
        return 1
    with tempfile.TemporaryDirectory(prefix="trajmatch-cuda-") as temporary:
        environment = (arguments.folder or Path(temporary, "environment")).resolve()
        python = environment / "bin" / "python"
        if not python.exists():
            with step("environment"):
                run([arguments.python, "-m", "venv", str(environment)])
        with step(f"torch {arguments.torch}"):
            run([str(python), "-m", "pip", "install", "-q", f"torch=={arguments.torch}"])
        copy = Path(temporary, "source")
        copy_sources(copy)
        with step("trajmatch"):
            install = [str(python), "-m", "pip", "install", "-q", "."]
            run(install, cwd=copy, environment={"TRAJMATCH_CUDA": "1"})
        with step("self-test on the CPU"):
            report = json.loads(
                run([str(python), "-m", "trajmatch", "doctor", "--json"], cwd=Path(temporary))
            )
        with step("fake tensors on CUDA"):
            run([str(python), "-c", FAKE_CALL], cwd=Path(temporary))
    return judge(report, arguments.torch)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", default="2.11.0", help="release of torch (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--folder", type=Path, help="where to keep the environment")
    return parser.parse_args()


def copy_sources(target: Path) -> None:
    """Copies what git knows or would add, so that no built file comes along."""
    listing = run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=SOURCE
    )
    for name in filter(None, listing.split("\0")):
        if (SOURCE / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, target / name)


def judge(report: dict[str, Any], torch: str) -> int:
    """Prints what was built and what each operator lacks; the status of the program."""
    build = report["build"]
    print(f"built against torch {build['torch']}, CUDA {build['cuda']}: {build['architectures']}")
    faults = []
    if not build["torch"].startswith(torch):
        faults.append(f"built against torch {build['torch']} instead of {torch}")
    if build["cuda"] is None:
        faults.append(f"built without CUDA: {build['left_out']}")
    if not report["passed"]:
        faults.append(f"the self-test failed: {report['self_test']}")
    if not report["operators"]:
        faults.append("no operator is registered")
    for operator, keys in sorted(report["operators"].items()):
        lacking = REQUIRED_KEYS - set(keys)
        print(f"  {operator}: {' '.join(sorted(keys))}")
        if lacking:
            faults.append(f"{operator} has no kernel for {', '.join(sorted(lacking))}")
    for fault in faults:
        print(f"FAULT: {fault}")
    print("failed" if faults else f"all {len(report['operators'])} operators have their kernels")
    return 1 if faults else 0


@contextmanager
def step(name: str) -> Iterator[None]:
    """Prints how long a step took."""
    start = time.monotonic()
    print(f"{name} ...", end=" ", flush=True)
    yield
    print(f"{time.monotonic() - start:.0f} s")


def run(
    command: list[str], cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    """Runs a command and returns its output; the program ends with it where it fails."""
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
