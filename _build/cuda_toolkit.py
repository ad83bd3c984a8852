"""Whether the CUDA kernels are built, with which nvcc, and for which architectures."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The kernels are compiled for these where no GPU is in sight. The first is the oldest they run on.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
USUAL_HOME = "/usr/local/cuda"
DRIVER = "libcuda.so.1"
REINSTALL = (
    "`pip install --no-cache-dir --force-reinstall --no-deps .` in trajmatch's source folder"
)


class CudaUnavailable(Exception):
    """The CUDA kernels cannot be built."""

    def __init__(self, why: str, mend: str):
        """Takes the reason, and what to do before trajmatch is installed again."""
        super().__init__(f"{why}. {mend}")
        self.why = why
        self.mend = f"{mend}, then: {REINSTALL}"


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler and the toolkit around it."""

    program: str
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
    if wish not in ("", "0", "1"):
        raise SystemExit(f"TRAJMATCH_CUDA is {wish!r}: it should be 0, 1 or not set")
    if wish == "0":
        raise CudaUnavailable("TRAJMATCH_CUDA=0 was set", "Unset TRAJMATCH_CUDA")
    if wish == "1":
        try:
            return find_nvcc(torch_cuda, newest_major=sys.maxsize)
        except CudaUnavailable as error:
            raise SystemExit(f"TRAJMATCH_CUDA=1 was set, but {error}") from error
    if torch_cuda is None:
        raise CudaUnavailable(
            "the torch it was built against has no CUDA", "Install a torch with CUDA"
        )
    return find_nvcc(torch_cuda, max(major(torch_cuda), major(driver_release() or "0")))


def find_nvcc(torch_cuda: str | None, newest_major: int) -> Nvcc:
    """The first nvcc that serves: of ``CUDA_HOME``, or of the PATH and /usr/local/cuda, or of pip.

    Args:
        torch_cuda: The CUDA release of torch, for the advice where there is none.
        newest_major: The newest major release that may be taken.

    Raises:
        CudaUnavailable: There is none. The reason is the first one's, if any was found.
    """
    reasons = []
    for program in _programs():
        try:
            nvcc = _examine(program)
        except CudaUnavailable as reason:
            reasons.append(reason)
            continue
        if major(nvcc.release) <= newest_major:
            return nvcc
        driver = driver_release()
        reasons.append(
            CudaUnavailable(
                f"nvcc {nvcc.release} is newer than torch's CUDA {torch_cuda} and "
                + (f"the driver's {driver}" if driver else "there is no driver here to compare"),
                f"Set CUDA_HOME to a toolkit of CUDA {newest_major}, or TRAJMATCH_CUDA=1 if the "
                "driver where it will run is new enough",
            )
        )
    home, packages = os.environ.get("CUDA_HOME"), nvcc_packages(torch_cuda)
    toolkit = "the CUDA toolkit, with CUDA_HOME set to its folder"
    none_found = CudaUnavailable(
        f"no nvcc in {home}/bin" if home else "no nvcc was found",
        f"Install {toolkit}, or: `pip install '{packages}'`" if packages else f"Install {toolkit}",
    )
    raise [*reasons, none_found][0]


def nvcc_packages(torch_cuda: str | None) -> str | None:
    """Requirements by which pip installs nvcc, in the release of torch's CUDA.

    Args:
        torch_cuda: The CUDA release of torch.

    Returns:
        A requirement. None without CUDA, and before CUDA 13, whose packages lack the compiler.
    """
    if torch_cuda is None or major(torch_cuda) < 13:
        return None
    return f"cuda-toolkit[nvcc,cccl]=={torch_cuda}.*"  # cccl: the headers of CUB


def driver_release() -> str | None:
    """The CUDA release that the driver of this machine is made for; None without a driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def architectures(nvcc: Nvcc) -> list[str]:
    """Architectures to compile for: ``TORCH_CUDA_ARCH_LIST``, the GPUs here, or the usual ones.

    The last of them is compiled to PTX as well, which later GPUs compile when they first load it.

    Raises:
        SystemExit: ``TORCH_CUDA_ARCH_LIST`` is not a list such as ``8.0;9.0+PTX``.
    """
    wish = re.split(r"[;\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;"))
    if wish == [""]:
        here = _capabilities()
        known = _known(here or ARCHITECTURES, nvcc)
        if len(known) < len(here):  # a GPU that is newer than nvcc runs what is PTX of the newest
            known = _known(ARCHITECTURES, nvcc)
        return [*known[:-1], *(f"{last}+PTX" for last in known[-1:])]
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


def host_compiler_flags() -> list[str]:
    """The flags of nvcc that name the C++ compiler, where ``CXX`` does."""
    return [f"-ccbin={shlex.split(os.environ['CXX'])[0]}"] if os.environ.get("CXX") else []


def major(release: str) -> int:
    """The 13 of ``"13.0"``."""
    return int(release.split(".")[0])


def _programs() -> Iterator[str]:
    """Each nvcc that there is, in the order in which they are tried."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH"), f"{USUAL_HOME}/bin"]
    places += [str(folder) for path in sys.path for folder in Path(path).glob("nvidia/cu*/bin")]
    yield from filter(None, (shutil.which("nvcc", path=place) for place in places))


def _examine(program: str) -> Nvcc:
    """Describe an nvcc that has compiled an empty file.

    Raises:
        CudaUnavailable: It cannot, or its toolkit is incomplete.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cu")
        source.touch()
        command = [program, *host_compiler_flags(), "-v", "-c", str(source), "-o", f"{source}.o"]
        status, output = _run(*command)
    # nvcc itself knows where its toolkit is; the program on the PATH may be a wrapper elsewhere.
    top = re.search(r"^#\$ TOP=(.+)", output, re.M)
    release = re.search(r"release (\d+\.\d+)", _run(program, "--version")[1])
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
    runtimes = [root / f"{d}/libcudart_static.a" for d in ("lib64", "lib")]
    runtimes += sorted(root.glob("targets/*/lib/libcudart_static.a"))
    runtime = next((path for path in runtimes if path.exists()), None)
    if runtime is None:
        raise CudaUnavailable(
            f"the CUDA toolkit at {root} has no libcudart_static.a",
            "Install the cudart package of the toolkit",
        )
    supported = frozenset(re.findall(r"sm_\d+[af]?", _run(program, "--list-gpu-code")[1]))
    return Nvcc(program, release[1], runtime, supported)


def _capabilities() -> list[str]:
    """The compute capabilities of the GPUs here that the kernels can run on, e.g. ``["8.6"]``."""
    _, output = _run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = {line for line in output.splitlines() if re.fullmatch(r"\d+\.\d", line)}
    return sorted((each for each in found if _order(each) >= _order(ARCHITECTURES[0])), key=_order)


def _known(archs: tuple[str, ...] | list[str], nvcc: Nvcc) -> list[str]:
    return [arch for arch in archs if f"sm_{_digits(arch)}" in nvcc.supported]


def _order(arch: str) -> tuple[int, ...]:
    return tuple(map(int, arch.split(".")))


def _digits(arch: str) -> str:
    return arch.removesuffix("+PTX").replace(".", "")


def _run(*command: str) -> tuple[int, str]:
    """The exit status and what a program printed; 127 and nothing where it cannot be started."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return 127, ""
    return answer.returncode, answer.stdout + answer.stderr
