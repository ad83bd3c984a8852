"""The build: the list of sources, who includes what, what is registered, what gets installed."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = json.loads((CSRC / "sources.json").read_text())


def load(name):
    """A module of _build, which is not part of the package but a script's neighbour."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "_build" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backend = load("backend")
compilation = load("compilation")
cuda_toolkit = load("cuda_toolkit")
torch_release = load("torch_release")


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
    assert (found.library_dir / "libtorch_cpu.so").exists()
    assert (found.include_dirs[0] / "torch/csrc/stable/library.h").exists()


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
    with pytest.raises(torch_release.UnsuitableTorch, match=re.escape(f"is torch {version}.")):
        torch_release.find_torch()


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.14.0a0+git0123456"])
def test_later_torches_are_taken(monkeypatch, tmp_path, version):
    fake_torch(monkeypatch, tmp_path, version)
    assert torch_release.find_torch().version == version


def test_no_torch_is_none(monkeypatch):
    monkeypatch.setattr(torch_release, "find_spec", lambda name: None)
    assert torch_release.find_torch() is None


@pytest.mark.parametrize(
    ("installed", "required"),
    [
        ({"torch": "2.13.0+cpu", "setuptools": "84.2.1"}, []),
        ({"torch": "2.13.0+cpu", "setuptools": "65.5.0"}, ["setuptools>=77"]),
        ({"torch": "2.13.0+cpu"}, ["setuptools>=77"]),
        ({"setuptools": "84.2.1"}, ["setuptools>=77", "pybind11>=2.13", "torch==2.13.0"]),
    ],
)
def test_the_backend_asks_for_what_the_environment_lacks(monkeypatch, installed, required):
    monkeypatch.setattr(backend, "_target_packages", lambda: installed)
    assert backend.get_requires_for_build_wheel() == required
    assert backend.get_requires_for_build_editable() == required


def test_the_backend_sees_the_environment_behind_an_isolated_build(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")
    assert str(tmp_path) not in backend._target_path()
    assert backend._target_packages()["torch"] == metadata.version("torch")


# --- CUDA or not


@pytest.fixture
def toolkit(monkeypatch, tmp_path):
    """A CUDA toolkit with an nvcc that knows sm_80 and sm_90 only, and no other on the machine."""
    root = tmp_path / "cuda"
    (root / "bin").mkdir(parents=True)
    (root / "lib64").mkdir()
    (root / "lib64/libcudart_static.a").touch()
    nvcc = root / "bin/nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  *--dryrun*) echo '#$ TOP={root}/bin/..' >&2;;\n"
        "  *--version*) echo 'Cuda compilation tools, release 12.6, V12.6.20';;\n"
        "  *--list-gpu-code*) printf 'sm_80\\nsm_90\\n';;\n"
        "  *) echo 'unsupported GNU version'; exit 1;;\n"
        "esac\n"
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.delenv("TRAJMATCH_CUDA", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return root


def test_cuda_is_built_with_a_cuda_torch_and_nvcc(toolkit):
    nvcc = cuda_toolkit.choose_nvcc("12.8")
    assert nvcc.release == "12.6"
    assert nvcc.include_dir == toolkit / "include"
    assert nvcc.static_runtime == toolkit / "lib64/libcudart_static.a"


@pytest.mark.parametrize(
    ("torch_cuda", "environment", "why"),
    [
        (None, {}, "the torch it was built against has no CUDA"),
        ("12.8", {"TRAJMATCH_CUDA": "0"}, "TRAJMATCH_CUDA=0 was set"),
        ("12.8", {"CUDA_HOME": "/nowhere"}, "no nvcc in /nowhere/bin"),
        ("11.8", {}, "nvcc 12.6 is newer than torch's CUDA 11.8"),
    ],
)
def test_cuda_is_left_out_with_a_reason(toolkit, monkeypatch, torch_cuda, environment, why):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cuda_toolkit.CudaUnavailable) as left_out:
        cuda_toolkit.choose_nvcc(torch_cuda)
    assert why in left_out.value.why
    assert "nstall" in left_out.value.mend


def test_an_incomplete_toolkit_is_a_reason(toolkit):
    (toolkit / "lib64/libcudart_static.a").unlink()
    with pytest.raises(cuda_toolkit.CudaUnavailable, match=r"has no libcudart_static\.a"):
        cuda_toolkit.choose_nvcc("12.8")


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


@pytest.mark.parametrize(
    ("wish", "architectures"),
    [
        (None, ["8.0", "9.0"]),  # the default has 10.0 too, which this nvcc does not know
        ("9.0", ["9.0"]),
        ("7.5 8.6;9.0a+PTX", ["7.5", "8.6", "9.0a+PTX"]),
    ],
)
def test_architectures(toolkit, monkeypatch, wish, architectures):
    if wish:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wish)
    assert cuda_toolkit.architectures(cuda_toolkit.find_nvcc()) == architectures


def test_an_architecture_that_is_no_number_stops_the_build(toolkit, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST has 'Hopper': write numbers"):
        cuda_toolkit.architectures(cuda_toolkit.find_nvcc())


def test_architecture_flags():
    assert cuda_toolkit.architecture_flags(["8.0", "10.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.fixture
def extension(monkeypatch, tmp_path):
    """The module that builds, working in a folder of its own."""
    monkeypatch.chdir(ROOT)
    module = load("extension")
    monkeypatch.setattr(module, "OBJECTS", tmp_path / "objects")
    return module


TORCH_WITH_CUDA = torch_release.TorchRelease("2.13.0+cu130", "13.0", Path("/nowhere"))


def test_kernels_that_do_not_compile_are_left_out(toolkit, extension, capsys):
    left_out = []
    assert extension.build_cuda(TORCH_WITH_CUDA, left_out) == (None, [])
    (part,) = left_out
    assert part["what"] == "CUDA kernels"
    assert "nvcc 12.6 does not compile them" in part["why"]
    assert "unsupported GNU version" in capsys.readouterr().out


def test_kernels_that_are_demanded_and_do_not_compile_stop_the_build(
    toolkit, extension, monkeypatch
):
    monkeypatch.setenv("TRAJMATCH_CUDA", "1")
    with pytest.raises(compilation.CompileError, match="unsupported GNU version"):
        extension.build_cuda(TORCH_WITH_CUDA, [])


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


def test_unchanged_facts_compile_nothing_again(extension):
    header = extension.OBJECTS / "build_facts.h"
    extension.write_facts({"torch": "2.13.0"})
    make_older(header)
    before = header.stat().st_mtime
    extension.write_facts({"torch": "2.13.0"})
    assert header.stat().st_mtime == before
    extension.write_facts({"torch": "2.14.0"})
    assert header.stat().st_mtime != before


def test_a_machine_without_a_compiler_is_told(extension, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match="needs a C\\+\\+17 compiler and finds none"):
        extension.find_cxx()


# --- compiling


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A source with a header, and a count of the compilations."""
    (tmp_path / "a.h").write_text("#define A 1\n")
    (tmp_path / "a.cpp").write_text('#include "a.h"\nint a() { return A; }\n')
    return compilation.Job(tmp_path / "a.cpp", tmp_path / "objects/a.o", ("g++", "-O0"))


def make_older(*paths):
    for path in paths:
        os.utime(path, (path.stat().st_mtime - 100,) * 2)


def test_only_what_changed_is_compiled(job, capsys):
    make_older(job.source, job.source.with_name("a.h"))
    compilation.compile_changed([job])
    assert job.is_current
    assert "compiling" in capsys.readouterr().out
    compilation.compile_changed([job])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["a.cpp", "a.h"])
def test_a_change_of_source_or_header_is_seen(job, name):
    make_older(job.source, job.source.with_name("a.h"))
    compilation.compile_changed([job])
    job.source.with_name(name).touch()
    assert not job.is_current


def test_a_change_of_flags_is_seen(job):
    make_older(job.source, job.source.with_name("a.h"))
    compilation.compile_changed([job])
    assert not compilation.Job(job.source, job.object, ("g++", "-O1")).is_current


def test_a_compiler_error_is_shown_and_leaves_no_object(job):
    job.source.write_text("int a() { return nothing; }\n")
    with pytest.raises(compilation.CompileError, match=r"a\.cpp:1:18: error"):
        compilation.compile_changed([job])
    assert not job.object.exists() and not job.is_current


def test_a_compiler_that_does_not_exist_is_named():
    with pytest.raises(compilation.CompileError, match="no-such-g: No such file or directory"):
        compilation.run(["no-such-g", "--version"])


# --- metadata


def test_the_tested_releases_cover_every_dependency():
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    # Stand-ins take the place of what the last two bring.
    left_out = [f"extra == '{extra}'" for extra in ("dev", "tensorboard", "wandb")]
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
