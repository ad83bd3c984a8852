"""The build: the list of sources, who includes what, what is registered, what gets installed."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import backend
import cuda_toolkit
import ninja_build
import pytest
import torch_release

import trajmatch

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = json.loads((CSRC / "sources.json").read_text())


# --- sources and includes


def test_the_list_of_sources_is_what_is_on_disk():
    def on_disk(*patterns):
        return sorted(str(path.relative_to(CSRC)) for p in patterns for path in CSRC.glob(p))

    assert SOURCES.keys() == {"cpu", "cuda", "torch"}
    assert sorted(SOURCES["cpu"]) == on_disk("cpu/**/*.cpp")
    assert sorted(SOURCES["cuda"]) == on_disk("cuda/**/*.cu")
    assert sorted(SOURCES["torch"]) == on_disk("*.cpp", "ops/**/*.cpp")


# What a file may include besides the standard library, by its place: an own folder, or the
# beginning of a path in angle brackets.
OWN = {
    "core": ["core/"],
    "cpu": ["core/", "cpu/"],
    "cuda": ["core/", "cuda/"],
    "ops": ["core/", "ops/"],
    "registration.cpp": ["core/", "ops/"],
    "bindings.cpp": ["core/", "build_facts.h"],
}
TORCH = ["torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/"]
FOREIGN = {
    "core": [],
    "cpu": ["immintrin.h"],
    "cuda": ["cuda_runtime.h", "cub/"],
    "ops": TORCH,
    "registration.cpp": TORCH,
    "bindings.cpp": ["pybind11/"],
    "cpu/pages.cpp": ["sys/mman.h"],
    # turns a message into Python's TypeError, which takes pybind11 and no torch
    "ops/raise.cpp": ["pybind11/"],
}
HEADERS = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh")]
FILES = sorted([*HEADERS, *(CSRC / path for group in SOURCES.values() for path in group)])
STANDARD_LIBRARY = re.compile(r"[a-z_]+")  # <cstdint>: no dot, no folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CSRC)))
def test_a_file_includes_only_what_its_place_allows(path):
    name = str(path.relative_to(CSRC))
    place = name.split("/")[0]
    for bracket, included in re.findall(r'^#include ([<"])([^>"]+)[>"]', path.read_text(), re.M):
        if bracket == '"':
            assert included.startswith(tuple(OWN[place])), included
        elif not STANDARD_LIBRARY.fullmatch(included):
            assert included.startswith(tuple(FOREIGN.get(name, FOREIGN[place]))), included


@pytest.mark.parametrize("path", [name for name in FOREIGN if FOREIGN[name] == ["pybind11/"]])
def test_torchs_own_pybind11_is_taken(path, tmp_path):
    """That of torch 2.11 and 2.12, which refuses a macro that the build defines."""
    (tmp_path / "pybind11").mkdir()
    for name in ("pybind11.h", "stl.h"):
        text = "#ifdef TORCH_TARGET_VERSION\n#error refused\n#endif\n"
        (tmp_path / "pybind11" / name).write_text(text)
    (tmp_path / "build_facts.h").touch()
    flags = ["-std=c++17", "-E", "-DTORCH_TARGET_VERSION=1", f"-I{tmp_path}", f"-I{CSRC}"]
    subprocess.run(["g++", *flags, str(CSRC / path), "-o", os.devnull], check=True)


@pytest.mark.parametrize("path", sorted(HEADERS), ids=lambda path: str(path.relative_to(CSRC)))
def test_headers_leave_the_namespaces_of_others_alone(path):
    assert not re.search(r"^\s*using namespace", path.read_text(), re.M)


# --- registration


def registered_operators():
    import torch

    import trajmatch.ops  # noqa: F401

    return sorted(
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("trajmatch::")
    )


def has_kernel(operator, key):
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


@pytest.mark.parametrize("key", ["CPU", "Meta", "Autograd"])
def test_every_operator_has_a_kernel_a_fake_and_autograd(key):
    operators = registered_operators()
    assert len(operators) >= 8
    assert [name for name in operators if not has_kernel(name, key)] == []


def test_every_operator_has_a_cuda_kernel_where_cuda_was_built():
    from trajmatch._extension import build_info

    expected = registered_operators() if build_info()["cuda"] else []
    assert [name for name in registered_operators() if has_kernel(name, "CUDA")] == expected


# --- what the build finds


@pytest.mark.parametrize(("torch_minor", "torchvision"), [(11, "0.26"), (13, "0.28"), (15, "0.30")])
def test_torchvision_is_the_release_that_belongs_to_torch(torch_minor, torchvision):
    requirement = torch_release.torchvision_requirement(torch_minor)
    assert requirement == f"torchvision=={torchvision}.*"


def test_the_torch_here_is_found_without_importing_it():
    import torch

    found = torch_release.find_torch()
    assert found.version == torch.__version__
    assert found.cuda == torch.version.cuda
    assert (found.root / "lib/libtorch_cpu.so").exists()
    assert (found.root / "include/torch/csrc/stable/library.h").exists()


def fake_torch(monkeypatch, folder, version):
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").touch()
    (folder / "torch/version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
    monkeypatch.setattr(
        torch_release,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[str(folder / "torch")]),
    )


@pytest.mark.parametrize("version", ["2.10.1+cu128", "1.13.0", "3.0.0"])
def test_an_unsuitable_torch_is_refused(monkeypatch, tmp_path, version):
    fake_torch(monkeypatch, tmp_path, version)
    with pytest.raises(SystemExit, match=re.escape(f"is torch {version}.")):
        torch_release.find_torch()


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.14.0a0+git0123456"])
def test_later_torches_are_taken(monkeypatch, tmp_path, version):
    fake_torch(monkeypatch, tmp_path, version)
    assert torch_release.find_torch().version == version


def test_no_torch_is_none(monkeypatch):
    monkeypatch.setattr(torch_release, "find_spec", lambda name: None)
    assert torch_release.find_torch() is None


NVCC = "cuda-toolkit[nvcc,cccl]==13.0.*"


@pytest.fixture
def target(monkeypatch):
    """Says what torch and packages the target has, and whether nvcc is there or pip gets it."""
    monkeypatch.delenv("TRAJMATCH_CUDA", raising=False)
    monkeypatch.setattr(backend, "_import_from_target", lambda: None)

    def set_up(
        torch_cuda="no torch",
        missing=None,
        pip=True,
        pip_gets=True,
        setuptools="84.2.1",
        ninja=True,
    ):
        torch = torch_release.TorchRelease("2.13.0", 13, torch_cuda, Path("/nowhere"))
        found = [SimpleNamespace(version=setuptools)] if setuptools else []

        def choose_nvcc(torch_cuda):
            if missing is not None:
                raise missing

        monkeypatch.setattr(
            backend, "find_torch", lambda: None if torch_cuda == "no torch" else torch
        )
        monkeypatch.setattr(backend, "find_ninja", lambda: "/bin/ninja" if ninja else None)
        monkeypatch.setattr(backend, "find_spec", lambda name: name if pip else None)
        monkeypatch.setattr(backend.metadata, "distributions", lambda name: found)
        monkeypatch.setattr(backend, "choose_nvcc", choose_nvcc)
        monkeypatch.setattr(backend, "_pip_gets", lambda requirement: pip_gets)

    return set_up


MISSING = cuda_toolkit.CudaUnavailable("no nvcc was found", "Install it")


@pytest.mark.parametrize(
    ("found", "required"),
    [
        ({"torch_cuda": None}, []),
        ({"torch_cuda": None, "ninja": False}, ["ninja>=1.11"]),
        ({"torch_cuda": None, "setuptools": "65.5.0"}, ["setuptools>=77"]),
        ({"torch_cuda": None, "setuptools": None}, ["setuptools>=77"]),
        ({}, ["setuptools>=77", "pybind11>=2.13", "torch==2.13.0"]),
        ({"missing": MISSING}, ["setuptools>=77", "pybind11>=2.13", "torch==2.13.0", NVCC]),
        ({"torch_cuda": "13.0"}, []),
        ({"torch_cuda": "13.0", "missing": MISSING}, [NVCC]),
        ({"torch_cuda": "13.2", "missing": MISSING}, ["cuda-toolkit[nvcc,cccl]==13.2.*"]),
        ({"torch_cuda": "13.0", "missing": MISSING, "pip_gets": False}, []),  # as offline
        (
            {"pip": False, "missing": MISSING, "pip_gets": False},  # as uv, which has to get torch
            ["setuptools>=77", "pybind11>=2.13", "torch==2.13.0", NVCC],
        ),
        ({"torch_cuda": "12.8", "missing": MISSING}, []),  # there are no such packages
        ({"torch_cuda": None, "missing": MISSING}, []),
    ],
)
def test_the_backend_asks_for_what_the_environment_lacks(target, found, required):
    target(**found)
    assert backend.get_requires_for_build_wheel() == required
    assert backend.get_requires_for_build_editable() == required


def test_the_backend_asks_for_no_nvcc_where_the_kernels_are_not_wanted(target, monkeypatch):
    target(torch_cuda="13.0", missing=MISSING)
    monkeypatch.setenv("TRAJMATCH_CUDA", "0")
    assert backend.get_requires_for_build_wheel() == []


def test_a_demand_without_nvcc_asks_for_it(target, monkeypatch):
    target(torch_cuda="13.0", missing=SystemExit("TRAJMATCH_CUDA=1 was set, but no nvcc was found"))
    monkeypatch.setenv("TRAJMATCH_CUDA", "1")
    assert backend.get_requires_for_build_wheel() == [NVCC]


@pytest.mark.parametrize("there", [True, False])
def test_pip_is_asked_whether_it_gets_the_packages(monkeypatch, tmp_path, there):
    if there:
        name = "trajmatch_stand_in-1.0.dist-info"
        with zipfile.ZipFile(tmp_path / "trajmatch_stand_in-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(
                f"{name}/METADATA",
                "Metadata-Version: 2.1\nName: trajmatch-stand-in\nVersion: 1.0\n",
            )
            wheel.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{name}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert backend._pip_gets("trajmatch-stand-in==1.*") is there


def test_a_pip_that_is_to_ask_no_index_is_not_asked(tmp_path):
    """Pip tells a build nothing of its options."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / '_build')!r}); import backend\n"
        "backend.subprocess.run = lambda *_, **__: sys.exit('asked')\n"
        "sys.exit(0 if backend._pip_gets('anything') is False else 'a wrong answer')"
    )
    # the shell stands for pip: it starts the backend, and the option is among its arguments
    command = ["sh", "-c", '"$@"; exit $?', "pip", sys.executable, "-c", code, "--no-index"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("program", ["backend", "setup"])
def test_a_python_that_is_too_old_is_told_so_in_one_line(program):
    """In words that it understands, and before anything else is imported or downloaded."""
    code = (
        "import sys; sys.version_info = (3, 10, 4)\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / '_build')!r}]\n"
        f"import {program}\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("trajmatch needs Python 3.11 or later, but this is Python ")


@pytest.mark.parametrize("path", ["setup.py", "_build/backend.py", "_build/python_release.py"])
def test_an_old_python_can_read_what_tells_it_that_it_is_too_old(path):
    ast.parse((ROOT / path).read_text(), feature_version=(3, 7))


def test_the_least_python_is_the_same_everywhere():
    metadata_says = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata_says["requires-python"] == ">=3.11"
    assert "version_info < (3, 11)" in (ROOT / "_build/python_release.py").read_text()


def test_the_backend_sees_the_environment_behind_an_isolated_build(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    monkeypatch.setattr(sys, "path", [])
    backend._import_from_target()
    assert str(tmp_path) not in sys.path
    assert torch_release.find_torch().version == metadata.version("torch")


# --- CUDA or not


def make_nvcc(root, release="12.6", knows=("sm_80", "sm_90"), compiles=True):
    """A CUDA toolkit whose nvcc takes an empty file, if anything."""
    (root / "bin").mkdir(parents=True)
    (root / "lib64").mkdir()
    (root / "lib64/libcudart_static.a").touch()
    nvcc = root / "bin/nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  *--version*) echo 'Cuda compilation tools, release {release}, V{release}.20';;\n"
        f"  *--list-gpu-code*) echo {' '.join(knows)};;\n"
        "  *)\n"
        f"    echo '#$ TOP={root}/bin/..' >&2\n"
        f'    case "{compiles} $*" in "True "*empty.cu*) exit 0;; esac\n'
        "    echo 'crt/host_config.h: #error -- unsupported GNU version' >&2; exit 1;;\n"
        "esac\n"
    )
    nvcc.chmod(0o755)
    return root


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without CUDA: no driver, nvcc or nvidia-smi, and no variable that asks for any."""
    for name in ("CUDA_HOME", "TRAJMATCH_CUDA", "TRAJMATCH_WHEEL", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.setattr(cuda_toolkit, "USUAL_HOME", "/nowhere")
    monkeypatch.setattr(cuda_toolkit, "DRIVER", "/nowhere/libcuda.so.1")
    return tmp_path


@pytest.fixture
def toolkit(machine, monkeypatch):
    """That machine with a CUDA toolkit, whose nvcc knows sm_80 and sm_90 only."""
    root = make_nvcc(machine / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("PATH", f"{machine / 'programs'}:/usr/bin:/bin")
    return root


def make_driver(machine, monkeypatch, release):
    """A driver that is made for a release of CUDA."""
    number = int(release.split(".")[0]) * 1000 + int(release.split(".")[1]) * 10
    source, library = machine / "driver.c", machine / "libcuda.so"
    source.write_text(f"int cuDriverGetVersion(int* v) {{ *v = {number}; return 0; }}\n")
    subprocess.run(["/usr/bin/cc", "-shared", str(source), "-o", str(library)], check=True)
    monkeypatch.setattr(cuda_toolkit, "DRIVER", str(library))


def make_gpus(machine, *capabilities):
    """The program nvidia-smi of a machine with these GPUs."""
    program = machine / "programs/nvidia-smi"
    lines = "".join(f"{capability}\\n" for capability in capabilities)
    program.write_text(f"#!/bin/sh\n[ \"$1\" = --query-gpu=compute_cap ] && printf '{lines}'\n")
    program.chmod(0o755)


def test_cuda_is_built_with_a_cuda_torch_and_nvcc(toolkit):
    nvcc = cuda_toolkit.choose_nvcc("12.8")
    assert nvcc.release == "12.6"
    assert nvcc.static_runtime == toolkit / "lib64/libcudart_static.a"
    assert nvcc.supported == {"sm_80", "sm_90"}


@pytest.mark.parametrize(
    ("torch_cuda", "environment", "why", "mend"),
    [
        (None, {}, "the torch it was built against has no CUDA", "Install a torch with CUDA"),
        ("12.8", {"TRAJMATCH_CUDA": "0"}, "TRAJMATCH_CUDA=0 was set", "Unset TRAJMATCH_CUDA"),
        ("12.8", {"CUDA_HOME": "/nowhere"}, "no nvcc in /nowhere/bin", "Install the CUDA toolkit"),
        (
            "13.0",
            {"CUDA_HOME": "/nowhere"},
            "no nvcc in /nowhere/bin",
            "or: `pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'`, then: `pip",
        ),
        (
            "11.8",
            {},
            "nvcc 12.6 is newer than torch's CUDA 11.8, and there is no driver here to compare",
            "a toolkit of CUDA 11",
        ),
    ],
)
def test_cuda_is_left_out_with_a_reason(toolkit, monkeypatch, torch_cuda, environment, why, mend):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cuda_toolkit.CudaUnavailable) as left_out:
        cuda_toolkit.choose_nvcc(torch_cuda)
    assert why in left_out.value.why
    assert mend in left_out.value.mend
    # a wheel of the build without the kernels must not come out of pip's cache again
    assert "`pip install --no-cache-dir --force-reinstall --no-deps .`" in left_out.value.mend


@pytest.mark.parametrize(("driver", "taken"), [("12.8", True), ("11.8", False)])
def test_an_nvcc_newer_than_torch_is_compared_with_the_driver(
    machine, toolkit, monkeypatch, driver, taken
):
    make_driver(machine, monkeypatch, driver)
    if taken:
        assert cuda_toolkit.choose_nvcc("11.8").release == "12.6"
    else:
        with pytest.raises(cuda_toolkit.CudaUnavailable, match=r"and the driver's CUDA 11"):
            cuda_toolkit.choose_nvcc("11.8")


def test_wheels_are_named_by_the_kernels_in_them(toolkit, monkeypatch):
    assert cuda_toolkit.local_version("12.8") == "+cu12"
    monkeypatch.setenv("TRAJMATCH_CUDA", "0")
    assert cuda_toolkit.local_version("12.8") == ""


def test_a_wheel_without_kernels_names_what_has_them(toolkit, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CUDA", "0")
    monkeypatch.setenv("TRAJMATCH_WHEEL", "1")
    with pytest.raises(cuda_toolkit.CudaUnavailable) as left_out:
        cuda_toolkit.choose_nvcc("12.8")
    assert left_out.value.why == "this is the wheel for the CPU"
    assert left_out.value.mend.startswith("Install the wheel for CUDA. ")
    assert left_out.value.mend.endswith(" --no-deps --no-binary trajmatch trajmatch`")


def test_an_incomplete_toolkit_is_a_reason(toolkit):
    (toolkit / "lib64/libcudart_static.a").unlink()
    with pytest.raises(cuda_toolkit.CudaUnavailable, match=r"has no libcudart_static\.a"):
        cuda_toolkit.choose_nvcc("12.8")


def test_an_nvcc_that_refuses_the_compiler_is_a_reason(machine, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_nvcc(machine / "old", compiles=False)))
    with pytest.raises(
        cuda_toolkit.CudaUnavailable, match=r"empty file: .*unsupported GNU version"
    ):
        cuda_toolkit.choose_nvcc("12.8")


def test_a_program_that_is_no_nvcc_is_a_reason(machine, monkeypatch):
    program = machine / "programs/nvcc"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    with pytest.raises(cuda_toolkit.CudaUnavailable, match="does not answer as nvcc"):
        cuda_toolkit.choose_nvcc("12.8")


@pytest.mark.parametrize("old", ["none", "refuses the compiler", "is too new"])
def test_the_nvcc_that_pip_installed_is_found_where_no_other_serves(machine, monkeypatch, old):
    """It lies in a package folder of the build's environment or of the target's."""
    if old == "refuses the compiler":
        monkeypatch.setenv("CUDA_HOME", str(make_nvcc(machine / "old", compiles=False)))
    if old == "is too new":
        monkeypatch.setenv("PATH", str(make_nvcc(machine / "new", release="14.1") / "bin"))
    packages = machine / "site-packages"
    make_nvcc(packages / "nvidia/cu13", release="13.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    nvcc = cuda_toolkit.choose_nvcc("13.0")
    assert nvcc.command == (str(packages / "nvidia/cu13/bin/nvcc"),)


@pytest.mark.parametrize("torch_cuda", [None, "11.8", "12.8"])
def test_cuda_can_be_demanded_whatever_torch_is(toolkit, monkeypatch, torch_cuda):
    monkeypatch.setenv("TRAJMATCH_CUDA", "1")
    assert cuda_toolkit.choose_nvcc(torch_cuda).release == "12.6"


def test_a_demand_that_cannot_be_met_stops_the_build(toolkit, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(SystemExit, match="TRAJMATCH_CUDA=1 was set, but no nvcc in /nowhere/bin"):
        cuda_toolkit.choose_nvcc("12.8")


def test_a_demand_that_cannot_be_understood_stops_the_build(toolkit, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_CUDA", "yes")
    with pytest.raises(SystemExit, match="TRAJMATCH_CUDA is 'yes': it should be 0, 1 or not set"):
        cuda_toolkit.choose_nvcc("12.8")


ALL = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120"]


@pytest.mark.parametrize(
    ("knows", "gpus", "architectures"),
    [
        (ALL, [], ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]),
        (ALL[:5], [], ["7.5", "8.0", "8.6", "8.9", "9.0+PTX"]),  # an nvcc before 12.8
        (ALL, ["7.5"], ["7.5+PTX"]),
        (ALL, ["10.3", "8.6", "8.6"], ["8.6", "10.3+PTX"]),
        (ALL, ["8.0", "7.0"], ["8.0+PTX"]),  # the kernels do not run on the second
        (ALL, ["7.0"], ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]),
        (ALL[:5], ["8.6", "12.0"], ["7.5", "8.0", "8.6", "8.9", "9.0+PTX"]),  # 12.0 runs the PTX
        (ALL, ["[N/A]"], ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]),
    ],
)
def test_architectures_are_those_of_the_gpus_here_else_the_usual(
    machine, knows, gpus, architectures
):
    nvcc = cuda_toolkit.Nvcc(("nvcc",), "13.0", Path("/nowhere"), frozenset(knows))
    if gpus:
        make_gpus(machine, *gpus)
    assert cuda_toolkit.architectures(nvcc) == architectures


def test_a_wheel_is_not_compiled_for_the_gpus_here_alone(machine, monkeypatch):
    monkeypatch.setenv("TRAJMATCH_WHEEL", "1")
    make_gpus(machine, "8.0")
    nvcc = cuda_toolkit.Nvcc(("nvcc",), "13.0", Path("/nowhere"), frozenset(ALL[:2]))
    assert cuda_toolkit.architectures(nvcc) == ["7.5", "8.0+PTX"]


@pytest.mark.parametrize(
    ("wish", "architectures"),
    [("9.0", ["9.0"]), ("7.5 8.6;9.0a+PTX", ["7.5", "8.6", "9.0a+PTX"])],
)
def test_architectures_that_are_asked_for(toolkit, machine, monkeypatch, wish, architectures):
    make_gpus(machine, "8.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    assert cuda_toolkit.architectures(cuda_toolkit.choose_nvcc("12.8")) == architectures


def test_an_architecture_that_is_no_number_stops_the_build(toolkit, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST has 'Hopper': write numbers"):
        cuda_toolkit.architectures(cuda_toolkit.choose_nvcc("12.8"))


def test_architecture_flags():
    assert cuda_toolkit.architecture_flags(["8.0", "10.0+PTX"]) == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_100,code=[sm_100,compute_100]",
    ]


@pytest.fixture
def extension(monkeypatch, tmp_path):
    """The module that builds, working in a folder of its own."""
    monkeypatch.chdir(ROOT)
    import extension as module  # which reads the list of sources in the current folder

    monkeypatch.setattr(module, "OBJECTS", tmp_path / "objects")
    return module


TORCH_WITH_CUDA = torch_release.TorchRelease("2.13.0+cu130", 13, "13.0", Path("/nowhere"))


def test_kernels_that_do_not_compile_are_left_out(toolkit, extension, capfd):
    left_out = []
    assert extension.build_cuda(TORCH_WITH_CUDA, left_out) == (None, [])
    (part,) = left_out
    assert part["what"] == "CUDA kernels"
    assert "nvcc 12.6 does not compile them" in part["why"]
    assert "unsupported GNU version" in capfd.readouterr().out


def test_kernels_that_are_demanded_and_do_not_compile_stop_the_build(
    toolkit, extension, monkeypatch, capfd
):
    monkeypatch.setenv("TRAJMATCH_CUDA", "1")
    with pytest.raises(SystemExit, match="trajmatch cannot be built"):
        extension.build_cuda(TORCH_WITH_CUDA, [])
    assert "unsupported GNU version" in capfd.readouterr().out


def test_openmp_is_used_where_the_compiler_has_it(extension):
    left_out = []
    assert extension.probe_openmp(extension.find_cxx(), left_out) == ["-fopenmp"]
    assert left_out == []


def test_openmp_is_left_out_where_the_compiler_lacks_it(extension):
    left_out = []
    assert extension.probe_openmp(["false"], left_out) == ["-fopenmp-simd"]
    assert "false does not compile a program with -fopenmp" in left_out[0]["why"]


def test_a_static_libstdcxx_stays_in_the_module(extension, tmp_path):
    source, module = tmp_path / "module.cpp", tmp_path / "module.so"
    source.write_text(
        "#include <sstream>\n"
        'extern "C" int digits(int n) { std::ostringstream s; s << n; return s.str().size(); }\n'
    )
    flags = ["-fPIC", "-static-libstdc++", *extension.LINK_FLAGS]
    subprocess.run(["g++", *flags, str(source), "-o", str(module)], check=True)
    assert ctypes.CDLL(str(module)).digits(1234) == 4
    names = subprocess.run(
        ["nm", "-D", "--defined-only", str(module)], check=True, capture_output=True, text=True
    ).stdout
    functions = [line.split()[2] for line in names.splitlines() if line.split()[1] == "T"]
    assert functions == ["digits"]


def test_what_was_left_out_is_said(extension, capsys):
    part = {"what": "CUDA kernels", "why": "nvcc is missing", "mend": "Install it"}
    facts = {"torch": "2.13.0+cpu", "cuda": None, "architectures": [], "left_out": [part]}
    extension.report(facts)
    assert capsys.readouterr().out.splitlines() == [
        "trajmatch: built against torch 2.13.0+cpu, CPU only",
        "trajmatch: left out: CUDA kernels, because nvcc is missing. Install it.",
    ]


@pytest.mark.parametrize(
    ("cxx", "named"), [("", "g++, c++, clang++"), ("no-such-g -m64", "no-such-g")]
)
def test_a_machine_without_a_compiler_is_told(extension, monkeypatch, cxx, named):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", cxx)
    message = f"trajmatch needs a C++17 compiler and finds none of {named}: install g++ or set CXX"
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        extension.find_cxx()


# --- compiling


@pytest.fixture
def make(tmp_path, capfd):
    """Makes a library of a source with a header by ninja; gives the files that were made."""
    (tmp_path / "a.h").write_text("#define A 1\n")
    (tmp_path / "a.cpp").write_text('#include "a.h"\nint a() { return A; }\n')

    def make(*flags, libraries=()):
        ninja = ninja_build.NinjaBuild(tmp_path / "objects $1")
        target = ninja.folder / "a.o"
        made = ninja.compile(target, tmp_path / "a.cpp", ["g++", "-fPIC", *flags])
        ninja.link(tmp_path / "a.so", [made], ["g++", "-shared"], libraries)
        ninja.run()
        return re.findall(r"making .*/([\w.]+)", capfd.readouterr().out)

    return make


def test_only_what_changed_is_made(make, tmp_path):
    assert make() == ["a.o", "a.so"]
    assert make() == []
    assert make(libraries=["-lm"]) == ["a.so"]


@pytest.mark.parametrize("name", ["a.cpp", "a.h"])
def test_a_change_of_source_or_header_is_seen(make, tmp_path, name):
    make()
    (tmp_path / name).touch()
    assert make() == ["a.o", "a.so"]


def test_a_change_of_flags_is_seen(make):
    make()
    assert make('-DTEXT="a $b"') == ["a.o", "a.so"]


def test_what_is_written_only_when_it_changes_makes_nothing_again(make, tmp_path):
    make()
    ninja_build.write_if_changed(tmp_path / "a.h", "#define A 1\n")
    assert make() == []
    ninja_build.write_if_changed(tmp_path / "a.h", "#define A 2\n")
    assert make() == ["a.o", "a.so"]


@pytest.mark.parametrize(("max_jobs", "jobs"), [("3", 3), ("", os.cpu_count())])
def test_files_are_made_several_at_a_time(tmp_path, monkeypatch, capfd, max_jobs, jobs):
    monkeypatch.setattr(ninja_build, "find_ninja", lambda: "echo")
    monkeypatch.setenv("MAX_JOBS", max_jobs)
    ninja_build.NinjaBuild(tmp_path).run()
    assert f" -j {jobs} " in capfd.readouterr().out


def test_a_compiler_error_is_shown_and_leaves_no_object(make, tmp_path, capfd):
    (tmp_path / "a.cpp").write_text("int a() { return nothing; }\n")
    with pytest.raises(ninja_build.BuildError, match="cannot be built"):
        make()
    assert "a.cpp:1:18: error" in capfd.readouterr().out
    assert not (tmp_path / "objects $1/a.o").exists()


def test_a_machine_without_ninja_is_told(make, monkeypatch):
    monkeypatch.setattr(ninja_build, "find_ninja", lambda: None)
    with pytest.raises(SystemExit, match="compiled with ninja, and finds none: pip install ninja"):
        make()


# --- metadata


def test_the_tested_releases_cover_every_dependency():
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    # The first two have exact pins of their own, and stand-ins take the place of the last two.
    left_out = [f"extra == '{extra}'" for extra in ("dev", "docs", "tensorboard", "wandb")]
    required = [
        requirement
        for requirement in metadata.requires("trajmatch")
        if not any(extra in requirement.replace('"', "'") for extra in left_out)
    ]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in required}
    assert names <= pinned


def test_formatters_have_one_release_everywhere():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    exact = {requirement for requirement in extra["dev"] if "==" in requirement}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    used = set(re.findall(r"additional_dependencies: \[(.+)\]", hooks))
    assert used == {"ruff==0.17.5", "clang-format==23.1.3"}
    assert used <= exact


def test_the_torchvision_required_belongs_to_the_torch_built_against():
    from trajmatch._extension import build_info

    built = int(build_info()["torch"].split(".")[1])
    assert torch_release.torchvision_requirement(built) in metadata.requires("trajmatch")


def metadata_of(folder, **variables):
    """The metadata of a package that is built with these variables set."""
    code = "import backend, sys; backend.prepare_metadata_for_build_wheel(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "_build"), **variables}
    command = [sys.executable, "-c", code, str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (found,) = folder.glob("*.dist-info")
    return metadata.Distribution.at(found)


def test_a_wheel_takes_any_torch_of_the_stable_interface_and_replaces_none(tmp_path):
    found = metadata_of(tmp_path, TRAJMATCH_WHEEL="1", TRAJMATCH_CUDA="0")
    required = [each for each in found.requires if "extra" not in each]
    assert [each for each in required if each.startswith("torch")] == ["torch<3,>=2.11"]
    assert not [each for each in required if "pybind11" in each or "ninja" in each]
    assert found.version == trajmatch.__version__


def test_a_wheel_with_kernels_says_so_in_its_version(toolkit, tmp_path):
    found = metadata_of(tmp_path, TRAJMATCH_WHEEL="1", TRAJMATCH_CUDA="1")
    assert found.version == f"{trajmatch.__version__}+cu12"


def test_the_extra_torchvision_begins_with_the_one_of_the_oldest_torch():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    oldest = torch_release.torchvision_requirement(torch_release.OLDEST_MINOR)
    assert extra["torchvision"] == [oldest.replace("==", ">=").removesuffix(".*")]


def test_one_version_everywhere():
    version = trajmatch.__version__
    (first, *_) = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"trajmatch-{version}+cu13-" in (ROOT / "docs/install.md").read_text()


def test_the_workflow_tests_the_oldest_and_the_newest_torch():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    oldest, newest = torch_release.OLDEST_MINOR, torch_release.NEWEST_TESTED_MINOR
    assert f'torch: ["2.{oldest}.0", "2.{newest}.0"]' in workflow


# --- source distribution, installation


def package_files(package):
    """All files of an installed or a source package that are not made by a build."""
    return {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }


@pytest.mark.slow
def test_a_source_distribution_can_be_installed_and_imported(tmp_path):
    tree = tmp_path / "tree"
    left_behind = shutil.ignore_patterns(
        ".git", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, tree, ignore=left_behind)
    make_sdist = (
        "import sys; sys.path.insert(0, '_build'); import backend; backend.build_sdist('..')"
    )
    subprocess.run([sys.executable, "-c", make_sdist], cwd=tree, check=True)
    (archive,) = tmp_path.glob("trajmatch-*.tar.gz")

    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    # what is tested is that all files are there; the fastest compilation will do
    environment = os.environ | {"CXXFLAGS": "-O0", "TRAJMATCH_CUDA": "0"}
    options = ["--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *options, str(archive)], env=environment, check=True)
    assert package_files(target / "trajmatch") == package_files(tree / "trajmatch")

    code = "import trajmatch.ops, trajmatch._C; print(trajmatch.__file__)"
    environment = os.environ | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-c", code]
    answer = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    assert answer.strip() == str(target / "trajmatch/__init__.py")
