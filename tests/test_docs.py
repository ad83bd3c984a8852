"""The pages: their code runs, their commands are understood, their links lead somewhere.

Commands are parsed and not run: many need a data set, a GPU or a cluster.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import trajmatch
from trajmatch import ops
from trajmatch.cli.arguments import parse
from trajmatch.cli.main import main
from trajmatch.distill import DistillConfig, distill
from trajmatch.exchange.config import ExportConfig
from trajmatch.exchange.export import export
from trajmatch.experts import ExpertConfig, train_experts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md")

#: Pages whose code reads results of commands: a store of experts, and a set in several forms.
READERS = {"README.md", "files.md"}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language, or in one of several (``bash|sh``)."""
    return re.findall(rf"^```(?:{language})\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands of the READERS leave behind."""
    folder = tmp_path_factory.mktemp("results")
    store, file = folder / "experts", folder / "distilled.safetensors"
    data = "fashion-mnist-mini?classes=0,1"
    settings = {"num_experts": 1, "epochs": 2, "width": 4, "depth": 1, "workers": 1}
    train_experts(ExpertConfig(out=store, data=data, **settings))
    distill(
        DistillConfig(experts=store, out=file, iterations=2, student_steps=2, max_start_epoch=1)
    )
    for form, name in (("npz", "distilled.npz"), ("torch", "distilled.pt")):
        export(ExportConfig(file=file, to=form, out=folder / name))
    (folder / "demo").mkdir()
    shutil.copy(file, folder / "demo")
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "here"
    if page.name in READERS:
        shutil.copytree(request.getfixturevalue("results"), folder)
    else:
        folder.mkdir()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):  # one after the other, as a reader would try them
        exec(compile(block, str(page), "exec"), names)


def test_test_images_are_preprocessed_as_files_md_says(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    *_, npz, pt = blocks(DOCS / "files.md", "python")
    pixels = torch.rand(2, 1, 28, 28)
    expected = trajmatch.load("distilled.safetensors").preprocessing.apply(pixels)
    for block, given in ((npz, pixels.numpy()), (pt, pixels)):
        names: dict[str, Any] = {}
        exec(compile(block, "docs/files.md", "exec"), names)
        torch.testing.assert_close(torch.as_tensor(names["preprocess"](given)), expected)


class Understood(Exception):
    """Raised where a command has its configuration and would begin."""


def lines_of(page: Path, languages: str = "bash|sh|console|text") -> str:
    """The blocks of a page that hold commands; of a command in several lines one."""
    return re.sub(r"(\\\n|\n +)", " ", "".join(blocks(page, languages)))


def commands_of(page: Path) -> list[list[str]]:
    """The arguments of each call of the program in the blocks of a page."""
    calls = re.findall(
        r"(?:^|^\$ |&& |-m )trajmatch +([a-z].*?) *(?:$|&&|>|\|)", lines_of(page), re.M
    )
    return [shlex.split(call) for call in calls]


def programs_of(page: Path) -> list[list[str]]:
    """Path and arguments of each call of a Python file in the blocks of a page."""
    calls = re.findall(r"^(?:\$ )?python (\S+\.py\b.*)", lines_of(page), re.M)
    return [shlex.split(call, comments=True) for call in calls]


@pytest.mark.parametrize("page", [*filter(commands_of, PAGES)], ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(*_: object, **__: object) -> None:
        raise Understood

    def parse_only(*arguments: Any, **keywords: Any) -> None:
        parse(*arguments, **keywords)
        begins()

    # Two modules hold the function: they are loaded before it is replaced for the others.
    for name in ("doctor", "recipes", "arguments"):
        monkeypatch.setattr(f"trajmatch.cli.{name}.parse", parse_only)
    monkeypatch.setattr("trajmatch.cli.device.with_device", lambda config: config)  # no GPU here
    monkeypatch.setattr("trajmatch.pipeline.run_pipeline", begins)
    for argv in commands_of(page):
        with pytest.raises(Understood):
            assert main(argv) == 0, argv


@pytest.mark.parametrize("page", [*filter(programs_of, PAGES)], ids=lambda page: page.name)
def test_the_programs_of_a_page_understand_their_arguments(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *arguments: Any) -> None:
        parse_args(self, *arguments)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for path, *arguments in programs_of(page):
        if not arguments and "argv" not in (ROOT / path).read_text():
            continue  # it takes none, and would begin
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises((Understood, SystemExit)) as stop:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        assert getattr(stop.value, "code", 0) == 0, (path, arguments)  # 0: --help


#: What blocks of commands have beside the program, Python files and comments. Installation, tests
#: and build run in .ci/run; the rest belongs to a cluster.
OTHER_COMMANDS = (
    *("pip install", "python3 -m venv", "source", "pre-commit install"),
    *("pytest", "cmake", "ctest", "sphinx-build"),
    *("torchrun", "srun torchrun", "export", "HEAD=", "[ $? -eq 75 ]"),
)


def test_every_command_of_the_pages_is_known() -> None:
    lines = [line for page in PAGES for line in lines_of(page, "bash|sh|console").splitlines()]
    commands = [part for line in lines for part in line.removeprefix("$ ").split(" && ")]
    known = ("#", "trajmatch ", "scontrol", *OTHER_COMMANDS)
    others = [each for each in commands if each and not each.startswith(known)]
    assert [each for each in others if not re.match(r"python \S+\.py\b", each)] == []
    assert len([argv for page in PAGES for argv in commands_of(page)]) > 20


def test_the_messages_that_are_explained_are_those_of_the_program() -> None:
    package = Path(trajmatch.__file__).parent
    # Strings in a row are one string, and a line may end within a message.
    source = re.sub(
        r'"\s*f?"', "", "".join(file.read_text() for file in sorted(package.rglob("*.py")))
    )
    text = (DOCS / "troubleshooting.md").read_text()
    entries = re.findall(r"^\*\*(.*)\*\*$", text, re.M)
    messages = [part for entry in entries for part in re.findall(r"`([^`]+)`", entry)]
    known = [each for each in messages if not each.startswith("trajmatch doctor")]
    assert len(known) > 20
    assert [each for each in known if each not in source] == []


def test_every_operator_is_in_the_reference() -> None:
    text = (DOCS / "ops.md").read_text()
    names = [name for name, each in vars(ops).items() if callable(each) and name.islower()]
    assert len(names) > 10 and [name for name in names if name not in text] == []


def test_the_page_of_own_parts_runs_from_its_first_command_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "own.md"
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        name = re.match(r"# (own_\w+)\.py\n", code)
        assert name is not None
        Path(f"{name[1]}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name[1], raising=False)
    for argv in commands_of(page):
        assert main(argv) == 0, argv
    assert len(trajmatch.load("images.safetensors").images) == 8
    assert trajmatch.load("term.safetensors").recipe["terms"] == ["own_term:Absolute"]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_list() -> None:
    listed = re.findall(r"^\| \[.*?\]\((.*?)\)", (DOCS / "README.md").read_text(), re.M)
    pages = {*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - {DOCS / "README.md"}
    assert sorted((DOCS / link).resolve() for link in listed) == sorted(pages)


def test_every_example_is_on_its_page() -> None:
    text = (DOCS / "examples.md").read_text()
    examples = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")]
    assert examples and [each for each in examples if each.name not in text] == []


#: Packages whose names are public.
PUBLIC = (
    *("trajmatch", "trajmatch.ops", "trajmatch.reference", "trajmatch.networks", "trajmatch.data"),
    *("trajmatch.experts", "trajmatch.distill", "trajmatch.distill.terms", "trajmatch.images"),
    *("trajmatch.evaluate", "trajmatch.recipes", "trajmatch.parallel"),
)


def public(package: str) -> dict[str, object]:
    """Public names of a package: ``__all__``, or those defined or imported ``as`` themselves."""
    module = importlib.import_module(package)
    names = [*getattr(module, "__all__", ())]
    for node in [] if names else ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.ImportFrom):
            names += [each.name for each in node.names if each.asname == each.name]
    found = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {name: each for name, each in found.items() if not inspect.ismodule(each)}


def documented() -> list[object]:
    """Objects that the pages of the reference document."""
    found = []
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. auto(\w+):: (\S+)$", page.read_text(), re.M):
            if kind == "module":
                module = name
                continue
            owner, _, name = (name if "." in name else f"{module}.{name}").rpartition(".")
            found.append(getattr(importlib.import_module(owner), name))
    return found


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    names, known = public(package), documented()
    assert names
    assert [name for name, it in names.items() if not any(it is each for each in known)] == []
