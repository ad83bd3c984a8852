"""Whether the CUDA kernels are built, with which nvcc, and for which architectures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Ampere, Hopper and Blackwell data-centre GPUs; later ones compile the PTX when they first load it.
DEFAULT_ARCHITECTURES = ("8.0", "9.0", "10.0+PTX")


class CudaUnavailable(Exception):
    """The CUDA kernels cannot be built."""

    def __init__(self, why: str, mend: str):
        """Takes the reason, and what puts it right."""
        super().__init__(f"{why}. {mend}")
        self.why = why
        self.mend = mend


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler and the toolkit around it."""

    program: str
    release: str  # e.g. "13.0"
    include_dir: Path
    static_runtime: Path  # libcudart_static.a
    supported: frozenset[str]  # real architectures, e.g. {"sm_80", "sm_90"}


def choose_nvcc(torch_cuda: str | None) -> Nvcc:
    """The nvcc to build the kernels with, by ``TRAJMATCH_CUDA``, torch and what is installed.

    Unset, the kernels are built when torch has CUDA and nvcc is found; a GPU is not needed. ``1``
    builds them whatever torch is: they do not depend on it, and serve when it is replaced by one
    with CUDA. ``0`` leaves them out.

    Args:
        torch_cuda: The CUDA release of torch, or None for a torch without CUDA.

    Raises:
        CudaUnavailable: They are not to be built or cannot be.
        SystemExit: ``TRAJMATCH_CUDA`` is 1 and they cannot be built, or has another value.
    """
    wish = os.environ.get("TRAJMATCH_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"TRAJMATCH_CUDA is {wish!r}: it should be 0, 1 or not set")
    if wish == "0":
        raise CudaUnavailable("TRAJMATCH_CUDA=0 was set", "Unset TRAJMATCH_CUDA and install again")
    if wish == "" and torch_cuda is None:
        raise CudaUnavailable(
            "the torch it was built against has no CUDA",
            "Install a torch with CUDA and then trajmatch again",
        )
    try:
        nvcc = find_nvcc()
        if wish == "" and _major(nvcc.release) > _major(str(torch_cuda)):
            raise CudaUnavailable(
                f"nvcc {nvcc.release} is newer than torch's CUDA {torch_cuda}, for which the "
                "driver may be made",
                f"Set CUDA_HOME to a toolkit of CUDA {_major(str(torch_cuda))} or, if the driver "
                "is new enough, TRAJMATCH_CUDA=1, and install again",
            )
    except CudaUnavailable as error:
        if wish == "1":
            raise SystemExit(f"TRAJMATCH_CUDA=1 was set, but {error}") from error
        raise
    return nvcc


def find_nvcc() -> Nvcc:
    """The nvcc of ``CUDA_HOME``, else the one on the PATH, else the one in /usr/local/cuda.

    Raises:
        CudaUnavailable: There is none, or its toolkit is incomplete.
    """
    home = os.environ.get("CUDA_HOME")
    places = (
        [os.path.join(home, "bin")] if home else [os.environ.get("PATH"), "/usr/local/cuda/bin"]
    )
    program = next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)
    if program is None:
        raise CudaUnavailable(
            f"no nvcc in {home}/bin" if home else "no nvcc was found",
            "Install the CUDA toolkit, set CUDA_HOME to its folder and install again",
        )
    # nvcc itself knows where its toolkit is; the program on the PATH may be a wrapper elsewhere.
    dry_run = _run(program, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull)
    top = re.search(r"^#\$ TOP=(\S+)", dry_run, re.M)
    release = re.search(r"release (\d+\.\d+)", _run(program, "--version"))
    if top is None or release is None:
        raise CudaUnavailable(
            f"{program} does not answer as nvcc", "Set CUDA_HOME and install again"
        )
    root = Path(top[1]).resolve()
    runtimes = [root / f"{d}/libcudart_static.a" for d in ("lib64", "lib")]
    runtimes += sorted(root.glob("targets/*/lib/libcudart_static.a"))
    runtime = next((path for path in runtimes if path.exists()), None)
    if runtime is None:
        raise CudaUnavailable(
            f"the CUDA toolkit at {root} has no libcudart_static.a",
            "Install the cudart package of the toolkit and install again",
        )
    supported = frozenset(re.findall(r"sm_\d+[af]?", _run(program, "--list-gpu-code")))
    return Nvcc(program, release[1], root / "include", runtime, supported)


def architectures(nvcc: Nvcc) -> list[str]:
    """What to compile for: ``TORCH_CUDA_ARCH_LIST``, or the default as far as nvcc knows it.

    Raises:
        SystemExit: ``TORCH_CUDA_ARCH_LIST`` is not a list such as ``8.0;9.0+PTX``.
    """
    wish = re.split(r"[;\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;"))
    if wish == [""]:
        return [arch for arch in DEFAULT_ARCHITECTURES if f"sm_{_digits(arch)}" in nvcc.supported]
    for arch in wish:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST has {arch!r}: write numbers, for example 8.0;9.0;10.0+PTX"
            )
    return wish


def architecture_flags(archs: list[str]) -> list[str]:
    """The flags of nvcc for :func:`architectures`."""
    flags = []
    for arch in archs:
        number = _digits(arch)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _digits(arch: str) -> str:
    return arch.removesuffix("+PTX").replace(".", "")


def _major(release: str) -> int:
    return int(release.split(".")[0])


def _run(*command: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout + answer.stderr
