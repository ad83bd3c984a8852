"""Builds ``trajmatch._C``: the sources of csrc/sources.json, with what the machine has to offer.

Only a compiler and torch are indispensable. Whatever else cannot be built is left out, said here,
and recorded in the module together with what puts it right (``trajmatch doctor`` shows it).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compilation import CompileError, Job, compile_changed, run
from cuda_toolkit import (
    CudaUnavailable,
    Nvcc,
    architecture_flags,
    architectures,
    choose_nvcc,
    host_compiler_flags,
)
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from torch_release import NEWEST_TESTED_MINOR, OLDEST_MINOR, TorchRelease, find_torch

CSRC = Path("csrc")
OBJECTS = Path("build") / f"objects-{sys.implementation.cache_tag}"
SOURCES: dict[str, list[str]] = json.loads((CSRC / "sources.json").read_text())

# Libtorch.so is named behind --no-as-needed because nothing uses it directly, while it is what
# brings libtorch_cuda under a torch with CUDA, where the weak symbols of the CUDA half are found.
TORCH_LIBRARIES = ["-ltorch_cpu", "-lc10", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]

# A compiler that brings libstdc++.a puts it into the module. Its names have to stay in there:
# exported, some of them were bound to torch's libstdc++.so, and the first operator crashed.
LINK_FLAGS = ["-shared", "-Wl,--exclude-libs,ALL"]

LeftOut = list[dict[str, str]]  # what, why, mend


class BuildExtension(build_ext):
    """The ``build_ext`` command for the one extension module of the package."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles what changed, and links."""
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                "trajmatch is compiled against the torch it will run with, and there is none here. "
                f"Install it first: pip install torch==2.{NEWEST_TESTED_MINOR}.0"
            )
        module = Path(self.get_ext_fullpath(ext.name))
        try:
            build(torch, module)
        except CompileError as error:
            raise SystemExit(f"trajmatch cannot be built:\n{error}") from error
        # Python started in the source folder finds the package there: let it find all of it.
        put(module, Path("trajmatch", module.name))


def build(torch: TorchRelease, module: Path) -> None:
    """Builds the module and prints what is in it.

    Raises:
        CompileError: A source that cannot be left out does not compile.
        SystemExit: There is no compiler, or the environment asks for what is impossible.
    """
    cxx = find_cxx()
    left_out: LeftOut = []
    openmp = probe_openmp(cxx, left_out)
    nvcc, cuda_objects = build_cuda(torch, left_out)
    facts: dict[str, Any] = {
        "torch": torch.version,
        "torch_interface": f"2.{OLDEST_MINOR}",
        "python": sys.implementation.cache_tag,
        "compiler": run([*cxx, "--version"]).splitlines()[0],
        "openmp": openmp == ["-fopenmp"],
        "cuda": nvcc.release if nvcc else None,
        "architectures": architectures(nvcc) if nvcc else [],
        "left_out": left_out,
    }
    write_facts(facts)
    compiler = (*cxx, *cxx_flags(torch), *openmp, *(["-DTRAJMATCH_WITH_CUDA"] if nvcc else []))
    jobs = jobs_of("cpu", compiler) + jobs_of("torch", compiler)
    compile_changed(jobs)

    objects = [str(job.object) for job in jobs] + cuda_objects
    link = [*cxx, *LINK_FLAGS, *openmp, *objects]
    link += [f"-L{torch.library_dir}", *TORCH_LIBRARIES]
    if nvcc:
        link += [str(nvcc.static_runtime), "-ldl", "-lrt", "-lpthread"]
    module.parent.mkdir(parents=True, exist_ok=True)
    run([*link, *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(module)])
    report(facts)


def put(module: Path, place: Path) -> None:
    """Copies the module; a running program keeps the one that it has loaded."""
    unfinished = f"{place}.{os.getpid()}"
    shutil.copy(module, unfinished)
    os.replace(unfinished, place)


def jobs_of(group: str, compiler: tuple[str, ...]) -> list[Job]:
    """The compilations of one group of sources.json."""
    return [Job(CSRC / path, OBJECTS / f"{path}.o", compiler) for path in SOURCES[group]]


def find_cxx() -> list[str]:
    """The C++ compiler: ``CXX``, or the first of the usual names."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise SystemExit("trajmatch needs a C++17 compiler and finds none: install g++ or set CXX")


def cxx_flags(torch: TorchRelease) -> list[str]:
    """The flags of every C++ source."""
    # An installed pybind11 comes before torch's folder, which holds an older copy of it.
    pybind11 = find_spec("pybind11")
    pybind11_dirs = (
        [f"{path}/include" for path in pybind11.submodule_search_locations or ()]
        if pybind11
        else []
    )
    system_dirs = [*pybind11_dirs, sysconfig.get_path("include"), *torch.include_dirs]
    return [
        "-std=c++17",
        "-O3",
        "-g0",
        "-Wall",
        "-Wno-psabi",  # how wide packs are passed between functions of one file
        "-fPIC",
        "-fvisibility=hidden",
        f"-DTORCH_TARGET_VERSION=0x{2:02x}{OLDEST_MINOR:02x}000000000000",
        f"-I{CSRC}",
        f"-I{OBJECTS}",
        *(f"-isystem{path}" for path in system_dirs),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]


def probe_openmp(cxx: list[str], left_out: LeftOut) -> list[str]:
    """``-fopenmp`` where a program with it compiles and links, else its vector loops alone."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        try:
            run([*cxx, "-fopenmp", str(source), "-o", str(source.with_suffix(""))])
        except CompileError:
            left_out.append(
                {
                    "what": "OpenMP threads (those of torch are used all the same)",
                    "why": f"{cxx[0]} does not compile a program with -fopenmp",
                    "mend": "Install the compiler's OpenMP library and install trajmatch again",
                }
            )
            return ["-fopenmp-simd"]
    return ["-fopenmp"]


def build_cuda(torch: TorchRelease, left_out: LeftOut) -> tuple[Nvcc | None, list[str]]:
    """Compiles the kernels where that is wanted and possible; gives nvcc and the objects."""
    try:
        nvcc = choose_nvcc(torch.cuda)
        jobs = jobs_of("cuda", (nvcc.program, *nvcc_flags(nvcc)))
        try:
            compile_changed(jobs)
        except CompileError as error:
            if os.environ.get("TRAJMATCH_CUDA") == "1":
                raise
            print(error, flush=True)
            raise CudaUnavailable(
                f"nvcc {nvcc.release} does not compile them (the output is above)",
                "Set TRAJMATCH_CUDA=1 and give pip -v to see why",
            ) from error
    except CudaUnavailable as error:
        left_out.append({"what": "CUDA kernels", "why": error.why, "mend": error.mend})
        return None, []
    return nvcc, [str(job.object) for job in jobs]


def nvcc_flags(nvcc: Nvcc) -> list[str]:
    """The flags of every CUDA source."""
    return [
        "-std=c++17",
        "-O3",
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
        f"-I{CSRC}",
        *architecture_flags(architectures(nvcc)),
        *host_compiler_flags(),
    ]


def write_facts(facts: dict[str, Any]) -> None:
    """Writes the header that bindings.cpp includes, only when it changes."""
    text = (
        f'constexpr char kBuildFacts[] = R"json(trajmatch-build-facts{json.dumps(facts)})json";\n'
    )
    header = OBJECTS / "build_facts.h"
    if not header.exists() or header.read_text() != text:
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


def report(facts: dict[str, Any]) -> None:
    """Says what was built, and what was not."""
    cuda = (
        f"CUDA {facts['cuda']} for {', '.join(facts['architectures'])}"
        if facts["cuda"]
        else "CPU only"
    )
    print(f"trajmatch: built against torch {facts['torch']}, {cuda}")
    for part in facts["left_out"]:
        print(f"trajmatch: left out: {part['what']}, because {part['why']}. {part['mend']}.")
