"""Builds ``trajmatch._C``: the sources of csrc/sources.json, with what the machine has to offer.

Only a compiler, ninja and torch are indispensable. Anything else that cannot be built is left out,
said here, and recorded in the module with its remedy (``trajmatch doctor`` shows it).
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

from cuda_toolkit import (
    CudaUnavailable,
    Nvcc,
    architecture_flags,
    architectures,
    choose_nvcc,
    for_others,
)
from ninja_build import BuildError, NinjaBuild, run, write_if_changed
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
        """Make what changed, and put the module where it belongs."""
        torch = find_torch()
        if torch is None:
            raise SystemExit(
                "trajmatch is compiled against the torch it will run with, and there is none here. "
                f"Install it first: pip install torch==2.{NEWEST_TESTED_MINOR}.0"
            )
        built = build(torch)
        module = Path(self.get_ext_fullpath(ext.name))
        put(built, module)
        # Python started in the source folder finds the package there: let it find all of it.
        put(built, Path("trajmatch", module.name))


def build(torch: TorchRelease) -> Path:
    """Makes the module and prints what is in it.

    Raises:
        BuildError: A source that cannot be left out does not compile.
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
        "compiler": run(*cxx, "--version")[1].partition("\n")[0],
        "openmp": openmp == ["-fopenmp"],
        "cuda": nvcc.release if nvcc else None,
        "architectures": architectures(nvcc) if nvcc else [],
        "left_out": left_out,
        "wheel": for_others(),
    }
    literal = f'R"json(trajmatch-build-facts{json.dumps(facts)})json"'
    write_if_changed(OBJECTS / "build_facts.h", f"constexpr char kBuildFacts[] = {literal};\n")
    with_cuda = ["-DTRAJMATCH_WITH_CUDA"] if nvcc else []
    runtime = [nvcc.static_runtime, "-ldl", "-lrt", "-lpthread"] if nvcc else []
    ninja = NinjaBuild(OBJECTS)
    compiler = [*cxx, *cxx_flags(torch), *openmp]
    objects = [
        *add_objects(ninja, SOURCES["cpu"], compiler),  # the same with and without CUDA
        *add_objects(ninja, SOURCES["torch"], [*compiler, *with_cuda]),
    ]
    libraries = [f"-L{torch.root}/lib", *TORCH_LIBRARIES, *runtime, *words_of("LDFLAGS")]
    linker = [*cxx, *LINK_FLAGS, *openmp]
    module = ninja.link(OBJECTS / "_C.so", [*objects, *cuda_objects], linker, libraries)
    ninja.run()
    report(facts)
    return module


def put(module: Path, place: Path) -> None:
    """Copies the module; a running program keeps the one that it has loaded."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = f"{place}.{os.getpid()}"
    shutil.copy(module, unfinished)
    os.replace(unfinished, place)


def add_objects(ninja: NinjaBuild, sources: list[str], compiler: list[str]) -> list[Path]:
    """Adds the objects of some of csrc's sources."""
    return [ninja.compile(ninja.folder / f"{path}.o", CSRC / path, compiler) for path in sources]


def find_cxx() -> list[str]:
    """The C++ compiler: ``CXX``, or the first of the usual names."""
    commands = [words_of("CXX")] if words_of("CXX") else [["g++"], ["c++"], ["clang++"]]
    for command in commands:
        if shutil.which(command[0]):
            return command
    names = ", ".join(command[0] for command in commands)
    raise SystemExit(
        f"trajmatch needs a C++17 compiler and finds none of {names}: install g++ or set CXX"
    )


def words_of(variable: str) -> list[str]:
    """The words of an environment variable."""
    return shlex.split(os.environ.get(variable, ""))


def cxx_flags(torch: TorchRelease) -> list[str]:
    """The flags of every C++ source."""
    # An installed pybind11 comes before torch's folder, which holds an older copy of it.
    pybind11 = find_spec("pybind11")
    pybind11_dirs = pybind11.submodule_search_locations or [] if pybind11 else []
    system_dirs = [
        *(f"{path}/include" for path in pybind11_dirs),
        sysconfig.get_path("include"),
        torch.root / "include",
    ]
    return [
        *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden"),
        *("-Wall", "-Wno-psabi"),  # psabi: how wide packs are passed between functions of one file
        f"-DTORCH_TARGET_VERSION=0x{2:02x}{OLDEST_MINOR:02x}000000000000",
        *(f"-I{folder}" for folder in (CSRC, OBJECTS)),
        *(f"-isystem{path}" for path in system_dirs),
        *words_of("CXXFLAGS"),
    ]


def probe_openmp(cxx: list[str], left_out: LeftOut) -> list[str]:
    """``-fopenmp`` where a program with it compiles and links, else its vector loops alone."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        status, _ = run(*cxx, "-fopenmp", str(source), "-o", str(source.with_suffix("")))
    if status == 0:
        return ["-fopenmp"]
    left_out.append(
        {
            "what": "OpenMP threads (those of torch are used all the same)",
            "why": f"{cxx[0]} does not compile a program with -fopenmp",
            "mend": "Install the compiler's OpenMP library and install trajmatch again",
        }
    )
    return ["-fopenmp-simd"]


def build_cuda(torch: TorchRelease, left_out: LeftOut) -> tuple[Nvcc | None, list[Path]]:
    """Compiles the kernels where that is wanted and possible; gives nvcc and the objects."""
    ninja = NinjaBuild(OBJECTS / "cuda")
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", f"-I{CSRC}"]
    try:
        nvcc = choose_nvcc(torch.cuda)
        compiler = [*nvcc.command, *flags, *architecture_flags(architectures(nvcc))]
        objects = add_objects(ninja, SOURCES["cuda"], compiler)
        ninja.run()
        return nvcc, objects
    except CudaUnavailable as error:
        reason = error
    except BuildError:
        if os.environ.get("TRAJMATCH_CUDA") == "1":
            raise
        reason = CudaUnavailable(
            f"nvcc {nvcc.release} does not compile them (the output is above)",
            "Set TRAJMATCH_CUDA=1 and give pip -v to see why",
        )
    left_out.append({"what": "CUDA kernels", "why": reason.why, "mend": reason.mend})
    return None, []


def report(facts: dict[str, Any]) -> None:
    """Prints what was built, and what was not."""
    architectures = ", ".join(facts["architectures"])
    cuda = f"CUDA {facts['cuda']} for {architectures}" if facts["cuda"] else "CPU only"
    print(f"trajmatch: built against torch {facts['torch']}, {cuda}")
    for part in facts["left_out"]:
        print(f"trajmatch: left out: {part['what']}, because {part['why']}. {part['mend']}.")
