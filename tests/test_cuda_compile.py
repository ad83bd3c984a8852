"""nvcc compiles every CUDA kernel for all supported architectures, without spilling registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
OTHERS = ("75", "86", "89", "120")  # what else is compiled for by default
SAMPLE = "half_operand.cu"  # the one that is always compiled for these too

REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")


@dataclass
class Kernel:
    """What ptxas says of one kernel."""

    name: str
    architecture: str
    stack: int = 0
    registers: int = 0
    shared: int = 0  # static, in bytes


def parse(report: str) -> Iterator[Kernel]:
    """The kernels in ptxas's report."""
    kernel = None
    for line in report.splitlines():
        if found := KERNEL.search(line):
            kernel = Kernel(*found.groups())
        if kernel is None:
            continue
        if found := SPILLS.search(line):
            kernel.stack = max(map(int, found.groups()))
        if found := REGISTERS.search(line):
            kernel.registers = int(found[1])
            kernel.shared = int(found[1]) if (found := SHARED.search(line)) else 0
            yield kernel
            kernel = None


def readable(names: list[str]) -> list[str]:
    """C++ names without namespaces and arguments."""
    if shutil.which("c++filt") is None:
        return names
    plain = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    noise = re.compile(r"trajmatch::|cuda::|\(anonymous namespace\)::|^void |\((?!\w+\)\d).*$")
    return [noise.sub("", line) for line in plain.splitlines()]


def test_the_parser_reads_spills() -> None:
    report = """\
ptxas info    : Compiling entry function 'kernel' for 'sm_90'
ptxas info    : Function properties for kernel
    16 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 64 bytes smem, 408 bytes cmem[0]
"""
    assert list(parse(report)) == [Kernel("kernel", "sm_90", stack=28, registers=40, shared=64)]


def test_every_architecture_of_the_build_is_compiled_here() -> None:
    build = (CSRC.parent / "_build/cuda_toolkit.py").read_text()
    (default,) = re.findall(r"^ARCHITECTURES = (.*)$", build, re.M)
    assert sorted(re.findall(r"[\d.]+", default.replace(".", ""))) == sorted(ARCHITECTURES + OTHERS)


@pytest.mark.parametrize(
    ("source", "architectures"),
    [
        *(pytest.param(source, ARCHITECTURES, id=source.name) for source in SOURCES),
        *(
            pytest.param(
                source,
                OTHERS,
                id=f"{source.name} for others",
                marks=[] if source.name == SAMPLE else pytest.mark.slow,
            )
            for source in SOURCES
        ),
    ],
)
def test_kernels_compile_without_spills(
    source: Path, architectures: tuple[str, ...], tmp_path: Path
) -> None:
    """Prints registers and shared memory; pytest shows them with -s or on failure."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    flags = ["-std=c++17", "-O3", "--threads=0", f"-I{CSRC}"]
    flags += ["-Xptxas=-v,-warn-spills", "-Xcompiler=-Wall,-Wextra"]
    result = subprocess.run(
        [nvcc, *flags, *targets, "-c", str(source), "-o", str(tmp_path / "kernels.o")],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    kernels = list(parse(report))
    assert {kernel.architecture for kernel in kernels} == {f"sm_{arch}" for arch in architectures}
    for kernel, name in zip(kernels, readable([k.name for k in kernels]), strict=True):
        print(
            f"{kernel.architecture:7}{kernel.registers:4} registers"
            f"{kernel.shared:6} bytes shared  {name}"
        )
    spilling = [kernel for kernel in kernels if kernel.stack > 0]
    assert not spilling, f"{len(spilling)} kernels use the stack: {spilling}"
    warnings = [line for line in report.splitlines() if "warning" in line]
    assert not warnings, "\n".join(warnings)
