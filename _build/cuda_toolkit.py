"""The choice of an nvcc for the CUDA kernels, if they are built, and of their architectures."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ninja_build import run

# The kernels are compiled for these where no GPU is in sight. The first is the oldest they run on.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
USUAL_HOME = "/usr/local/cuda"
DRIVER = "libcuda.so.1"


class CudaUnavailable(Exception):
    """The CUDA kernels cannot be built."""

    def __init__(self, why: str, mend: str):
        """Takes the reason, and what to do before trajmatch is installed again."""
        super().__init__(f"{why}. {mend}")
        self.why, self.mend = why, f"{mend}, then: {reinstall()}"


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler and the toolkit around it."""

    command: tuple[str, ...]  # the program, with the C++ compiler that `CXX` names
    release: str  # e.g. "13.0"
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
    if wish == "0" and for_others():
        raise CudaUnavailable(
            "this is the wheel for the CPU",
            "Install the wheel for CUDA. To compile trajmatch instead, install a torch with CUDA",
        )
    if wish == "0":
        raise CudaUnavailable("TRAJMATCH_CUDA=0 was set", "Unset TRAJMATCH_CUDA")
    if wish == "1":
        try:
            return find_nvcc(torch_cuda, newest_major=sys.maxsize)
        except CudaUnavailable as error:
            raise SystemExit(f"TRAJMATCH_CUDA=1 was set, but {error}") from error
    if wish:
        raise SystemExit(f"TRAJMATCH_CUDA is {wish!r}: it should be 0, 1 or not set")
    if torch_cuda is None:
        why = "the torch it was built against has no CUDA"
        raise CudaUnavailable(why, "Install a torch with CUDA")
    return find_nvcc(torch_cuda, max(major(torch_cuda), driver_major()))


def for_others() -> bool:
    """Return True if wheels.py builds, for machines without these GPUs and sources."""
    return os.environ.get("TRAJMATCH_WHEEL") == "1"


def reinstall() -> str:
    """Return the command that compiles trajmatch on the machine where it is installed."""
    pip = "pip install --no-cache-dir --force-reinstall --no-deps"
    if for_others():
        return f"`{pip} --no-binary trajmatch trajmatch`"
    return f"`{pip} .` in trajmatch's source folder"


def local_version(torch_cuda: str | None) -> str:
    """Return ``"+cu13"`` for a build with kernels of CUDA 13, ``""`` for one without kernels."""
    try:
        return f"+cu{major(choose_nvcc(torch_cuda).release)}"
    except CudaUnavailable:
        return ""


def find_nvcc(torch_cuda: str | None, newest_major: int) -> Nvcc:
    """The first nvcc that serves: of ``CUDA_HOME``, or of the PATH and /usr/local/cuda, or of pip.

    Args:
        torch_cuda: The CUDA release of torch, for the advice where there is none.
        newest_major: The newest major release that may be taken.

    Raises:
        CudaUnavailable: There is none. The reason is the first one's, if any was found.
    """
    home, packages = os.environ.get("CUDA_HOME"), nvcc_packages(torch_cuda)
    install = "Install the CUDA toolkit, with CUDA_HOME set to its folder"
    reasons = []
    for program in _programs(home):
        try:
            nvcc = _examine(program)
            if major(nvcc.release) <= newest_major:
                return nvcc
            driver = driver_major()
            known = f"the driver's CUDA {driver}" if driver else "there is no driver here to compare"
            raise CudaUnavailable(
                f"nvcc {nvcc.release} is newer than torch's CUDA {torch_cuda}, and {known}",
                f"Set CUDA_HOME to a toolkit of CUDA {newest_major}, or TRAJMATCH_CUDA=1 if the "
                "driver where it will run is new enough",
            )
        except CudaUnavailable as reason:
            reasons.append(reason)
    none_found = CudaUnavailable(
        f"no nvcc in {home}/bin" if home else "no nvcc was found",
        f"{install}, or: `pip install '{packages}'`" if packages else install,
    )
    raise [*reasons, none_found][0]


def nvcc_packages(torch_cuda: str | None) -> str | None:
    """The requirement by which pip installs nvcc, in the release of torch's CUDA.

    None without CUDA, and before CUDA 13, whose packages lack the compiler.
    """
    if torch_cuda is None or major(torch_cuda) < 13:
        return None
    return f"cuda-toolkit[nvcc,cccl]=={torch_cuda}.*"  # cccl: the headers of CUB


def driver_major() -> int:
    """The major CUDA release that the driver of this machine is made for; 0 without a driver."""
    number = ctypes.c_int()
    with suppress(OSError):
        ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000


def architectures(nvcc: Nvcc) -> list[str]:
    """Architectures to compile for: ``TORCH_CUDA_ARCH_LIST``, the GPUs here, or the usual ones.

    A wheel for other machines is compiled for the usual ones. The last of them is compiled to PTX
    as well, which later GPUs compile when they first load it.

    Raises:
        SystemExit: ``TORCH_CUDA_ARCH_LIST`` is not a list such as ``8.0;9.0+PTX``.
    """
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for arch in wish:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST has {arch!r}: write numbers, for example 8.0;9.0;10.0+PTX"
            )
    if wish:
        return wish
    here = [] if for_others() else _capabilities()
    usual = [arch for arch in ARCHITECTURES if _knows(nvcc, arch)]
    # A GPU that is newer than nvcc runs the PTX of the newest of the usual ones.
    chosen = here if here and all(_knows(nvcc, arch) for arch in here) else usual
    return [*chosen[:-1], *(f"{last}+PTX" for last in chosen[-1:])]


def architecture_flags(archs: list[str]) -> list[str]:
    """The flags of nvcc for :func:`architectures`."""
    return [
        f"-gencode=arch=compute_{number},code=[sm_{number}{f',compute_{number}' if ptx else ''}]"
        for number, ptx, _ in (arch.replace(".", "").partition("+PTX") for arch in archs)
    ]


def major(release: str) -> int:
    """The 13 of ``"13.0"``."""
    return int(release.split(".")[0])


def _programs(home: str | None) -> Iterator[str]:
    """Each nvcc that there is, in the order in which they are tried."""
    places = [f"{home}/bin"] if home else [os.environ.get("PATH"), f"{USUAL_HOME}/bin"]
    places += [str(folder) for path in sys.path for folder in Path(path).glob("nvidia/cu*/bin")]
    yield from filter(None, (shutil.which("nvcc", path=place) for place in places))


def _examine(program: str) -> Nvcc:
    """Describe an nvcc that has compiled an empty file.

    Raises:
        CudaUnavailable: It cannot, or its toolkit is incomplete.
    """
    cxx = shlex.split(os.environ.get("CXX", ""))
    command = (program, *(f"-ccbin={word}" for word in cxx[:1]))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cu")
        source.touch()
        status, output = run(*command, "-v", "-c", str(source), "-o", f"{source}.o")
    # nvcc itself knows where its toolkit is; the program on the PATH may be a wrapper elsewhere.
    top = re.search(r"^#\$ TOP=(.+)", output, re.M)
    release = re.search(r"release (\d+\.\d+)", run(program, "--version")[1])
    if top is None or release is None:
        raise CudaUnavailable(f"{program} does not answer as nvcc", "Set CUDA_HOME")
    if status != 0:
        lines = [line for line in output.splitlines() if "error" in line.lower()] or [output]
        raise CudaUnavailable(
            f"nvcc {release[1]} ({program}) does not compile an empty file: {lines[0].strip()}",
            "Install a CUDA toolkit that takes the C++ compiler here, and set CUDA_HOME to its "
            "folder, or set CXX to an older compiler",
        )
    root = Path(top[1].strip()).resolve()
    for folder in ("lib64", "lib", "targets/*/lib"):
        for runtime in root.glob(f"{folder}/libcudart_static.a"):
            supported = re.findall(r"sm_\d+[af]?", run(program, "--list-gpu-code")[1])
            return Nvcc(command, release[1], runtime, frozenset(supported))
    raise CudaUnavailable(
        f"the CUDA toolkit at {root} has no libcudart_static.a",
        "Install the cudart package of the toolkit",
    )


def _capabilities() -> list[str]:
    """The compute capabilities of the GPUs here that the kernels can run on, e.g. ``["8.6"]``."""
    _, output = run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = set(re.findall(r"^\d+\.\d$", output, re.M))
    return sorted((each for each in found if float(each) >= float(ARCHITECTURES[0])), key=float)


def _knows(nvcc: Nvcc, arch: str) -> bool:
    return f"sm_{arch.replace('.', '')}" in nvcc.supported
