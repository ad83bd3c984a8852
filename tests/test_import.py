"""What importing costs, and what it says when it cannot succeed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trajmatch

HEAVY = ["torch", "torchvision", "numpy", "rich", "safetensors", "matplotlib", "PIL"]


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    "module",
    [
        "trajmatch",
        "trajmatch.cli.main",
        "trajmatch.errors",
        "trajmatch.files",
        "trajmatch.progress",
        "trajmatch.cli.arguments",
        "trajmatch.experts.config",
        "trajmatch.distill.config",
        "trajmatch.evaluate.config",
        "trajmatch.report.config",
        "trajmatch.cli.show",
    ],
)
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = set(run_python(code).stdout.split())
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy():
    code = "import sys, trajmatch.cli.main as m; print(m.main(['--help']), *sys.modules)"
    *text, loaded = run_python(code).stdout.splitlines()
    assert "usage" in text[0].lower() or "trajmatch" in text[0]
    assert loaded.startswith("0 sys ")
    assert set(loaded.split()).isdisjoint(HEAVY)


def test_public_names_can_be_listed_and_found():
    assert set(trajmatch.__all__) <= set(dir(trajmatch))
    for name in trajmatch.__all__:
        assert getattr(trajmatch, name) is not None


def test_names_that_do_not_exist_are_named():
    with pytest.raises(AttributeError, match="module 'trajmatch' has no attribute 'distil'"):
        _ = trajmatch.distil


def test_load_is_the_one_of_the_zoo():
    from trajmatch import zoo

    assert trajmatch.load is zoo.load


# --- torch


def import_with_torch(folder, *, version=None):
    """The last line that an import prints beside a stand-in for torch, or beside none."""
    (folder / "trajmatch").mkdir()
    shutil.copy(trajmatch.__file__, folder / "trajmatch")
    if version is not None:
        (folder / "torch").mkdir()
        (folder / "torch/__init__.py").write_text("raise RuntimeError('torch was imported')\n")
        (folder / "torch/version.py").write_text(f"__version__ = {version!r}\n")
    code = (
        "import sys\n"
        f"sys.path = [{str(folder)!r}, *(p for p in sys.path if 'packages' not in p)]\n"
        "sys.meta_path = [f for f in sys.meta_path if '_Editable' not in repr(f)]\n"
        "import trajmatch"
    )
    answer = run_python(code, PYTHONPATH="")
    return answer.stderr.splitlines()[-1] if answer.returncode else "imported"


INSTALL = f"Install one: `{sys.executable} -m pip install 'torch>=2.11'`"


@pytest.mark.parametrize("version", ["2.10.1+cu128", "2.9.0", "1.13.0"])
def test_a_torch_that_is_too_old_is_refused_in_one_line(tmp_path, version):
    assert import_with_torch(tmp_path, version=version) == (
        "ImportError: trajmatch needs torch 2.11 or later, but "
        f"{tmp_path / 'torch'} is torch {version}. {INSTALL}"
    )


def test_an_environment_without_torch_is_refused_in_one_line(tmp_path):
    assert import_with_torch(tmp_path) == (
        f"ImportError: trajmatch needs torch 2.11 or later, but {sys.prefix} has none. {INSTALL}"
    )


@pytest.mark.parametrize("version", ["2.11.0+cpu", "2.14.0a0+git0123456"])
def test_a_later_torch_is_not_refused(tmp_path, version):
    assert import_with_torch(tmp_path, version=version) == "imported"


def test_the_oldest_torch_is_the_one_that_was_compiled_for():
    from trajmatch import _extension

    assert _extension.build_info()["torch_interface"] == "{}.{}".format(*trajmatch.OLDEST_TORCH)


# --- the compiled part


@pytest.fixture
def without_extension(tmp_path):
    """A copy of the package without its compiled part, and the folder to import it from."""
    package = Path(trajmatch.__file__).parent
    copy = tmp_path / "trajmatch"
    copy.mkdir()
    for name in ("__init__.py", "_extension.py"):
        shutil.copy(package / name, copy)
    return copy


def import_failure(copy):
    code = (
        # without the finder of an editable installation, which would find the real package
        "import sys, json\n"
        "sys.meta_path = [f for f in sys.meta_path if '_Editable' not in repr(f)]\n"
        f"sys.path.insert(0, {str(copy.parent)!r})\n"
        "try: import trajmatch._extension\n"
        "except ImportError as error: print(json.dumps([error.name, str(error)]))"
    )
    name, message = json.loads(run_python(code).stdout)
    assert name == "trajmatch._C"
    return message


def test_build_info_has_what_the_documentation_says():
    from trajmatch import _extension

    info = _extension.build_info()
    assert info.keys() == {
        "torch",
        "torch_interface",
        "python",
        "compiler",
        "openmp",
        "cuda",
        "architectures",
        "left_out",
        "wheel",
    }
    assert info["python"] == sys.implementation.cache_tag
    assert (info["cuda"] is None) == (info["architectures"] == [])
    assert info["cuda"] or "CUDA kernels" in [part["what"] for part in info["left_out"]]
    for part in info["left_out"]:
        assert part.keys() == {"what", "why", "mend"}


def test_an_extension_that_was_not_built_is_explained(without_extension):
    import torch

    message = import_failure(without_extension)
    assert f"has not been built (there is none in {without_extension})" in message
    assert f"running now: torch {torch.__version__}, {sys.implementation.cache_tag}" in message
    assert (
        f"{sys.executable} -m pip install --no-cache-dir --force-reinstall --no-deps ." in message
    )


def test_an_extension_that_cannot_be_loaded_says_what_it_was_built_for(without_extension):
    from trajmatch import _C, _extension

    library = Path(_C.__file__)
    damaged = without_extension / library.name
    damaged.write_bytes(b"not a library" + library.read_bytes())
    info = _extension.build_info()
    message = import_failure(without_extension)
    assert f"was built for torch {info['torch']}, {info['python']}; running now" in message
    assert "invalid ELF header" in message


def test_an_extension_of_another_python_is_found(without_extension):
    from trajmatch import _C

    shutil.copy(_C.__file__, without_extension / "_C.cpython-39-x86_64-linux-gnu.so")
    assert "was built for torch" in import_failure(without_extension)


# --- torchvision


def test_torchvision_works_beside_this_torch():
    code = (
        "from trajmatch._torchvision import torchvision as t\n"
        "print(t.datasets.CIFAR10.__name__, t.utils.make_grid.__name__, t.__version__)"
    )
    answer = run_python(code)
    assert answer.stdout.startswith("CIFAR10 make_grid "), answer.stderr


@pytest.mark.parametrize(
    ("torch_release", "arguments"),
    [
        # the registry has one wheel for one CUDA, and pip is content with what is installed
        (
            "2.11.0+cu126",
            "'torchvision==0.26.*' --index-url https://download.pytorch.org/whl/cu126",
        ),
        ("2.13.0+cpu", "'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"),
        ("2.13.0", "'torchvision==0.28.*'"),
        ("2.14.0a0+5228986c39.nv25.06", "'torchvision==0.29.*'"),
    ],
)
def test_a_torchvision_that_fails_otherwise_is_explained(monkeypatch, torch_release, arguments):
    from trajmatch import _torchvision

    def fail():
        raise OSError("libcudart.so.13 is missing")

    monkeypatch.setattr(_torchvision, "_import", fail)
    monkeypatch.setattr(_torchvision.torch, "__version__", torch_release)
    with pytest.raises(trajmatch.UserError) as explained:
        _torchvision._load()
    assert str(explained.value) == (
        "torchvision cannot be imported: OSError: libcudart.so.13 is missing. Install the one that "
        f"belongs to torch {torch_release}: `{sys.executable} -m pip install --force-reinstall "
        f"--no-deps {arguments}`"
    )
