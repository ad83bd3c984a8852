"""The examples of the documentation run."""

from __future__ import annotations

import re
import shlex
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
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.terms import Course, find_term
from trajmatch.experts import ExpertConfig, train_experts

METHODS = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", METHODS, re.M | re.S)


@pytest.fixture
def own_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The first term of the page, with the other one and the parametrisation beside it."""
    monkeypatch.syspath_prepend(tmp_path)
    names = ("direction", "settled", "low_resolution")
    for name, code in zip(names, blocks("python"), strict=True):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
        assert len(code.splitlines()) < 40
    return "direction:Direction"


def test_the_term_of_the_documentation(own_term: str) -> None:
    loss = MatchingLoss((find_term("final"), find_term(own_term)), epochs=2)
    start, target = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 5.0])
    end = torch.tensor([1.0, 3.0])
    cosine = (2 * 4) / (2 * 5)
    distance = ops.param_distance(end, target, start).item()
    found = loss(Course(start, {5: end}, {2: target}, 5, 2)).item()
    assert found == pytest.approx(distance + 1 - cosine)


def test_a_run_with_term_and_parametrisation_of_the_documentation(
    own_term: str, tmp_path: Path
) -> None:
    store = tmp_path / "experts"
    settings = {"num_experts": 1, "epochs": 2, "width": 4, "depth": 1, "workers": 1}
    train_experts(ExpertConfig(out=store, data="fashion-mnist-mini?classes=0,1", **settings))
    result = distill(
        DistillConfig(
            experts=store,
            out=tmp_path / "d",
            iterations=2,
            student_steps=2,
            max_start_epoch=1,
            terms=("final", own_term, "settled:Settled:limit=1e-4"),
            images="low_resolution:LowResolution:factor=2",
        )
    )
    assert result.recipe["terms"] == ["final", own_term, "settled:Settled:limit=1e-4"]


DOCS = Path(__file__).parents[1] / "docs"
PAGES = (*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md")


class Understood(Exception):
    """Raised where a command has its configuration and would begin."""


def commands_of(page: Path) -> list[list[str]]:
    """The arguments of each call of the program in the blocks of a page."""
    blocks = re.findall(r"^```(?:bash|sh|text)\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = re.sub(r"(\\\n|\n +)", " ", "".join(blocks))  # of several lines one
    calls = re.findall(r"(?:^|&& |-m )trajmatch +([a-z].*?) *(?:$|&&|>|\|)", lines, re.M)
    return [shlex.split(call) for call in calls]


@pytest.mark.parametrize("page", [*filter(commands_of, PAGES)], ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(*_: object, **__: object) -> None:
        raise Understood

    def parse_only(*arguments: Any, **keywords: Any) -> None:
        parse(*arguments, **keywords)
        begins()

    monkeypatch.setattr("trajmatch.cli.arguments.parse", parse_only)
    monkeypatch.setattr("trajmatch.pipeline.run_pipeline", begins)
    for argv in commands_of(page):
        with pytest.raises(Understood):
            assert main(argv) == 0, argv


def test_pages_have_commands() -> None:
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


def test_the_examples_with_operators_run() -> None:
    text = (DOCS / "ops.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(examples) == 6
    for example in examples:
        exec(compile(example, "docs/ops.md", "exec"), {})


def test_the_calls_that_stand_for_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "python.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    exec(compile(example, "docs/python.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.endswith("torch.Size([10, 1, 28, 28])\n")


def test_every_operator_is_in_the_reference() -> None:
    text = (DOCS / "ops.md").read_text()
    names = [name for name, each in vars(ops).items() if callable(each) and name.islower()]
    assert len(names) > 10 and [name for name in names if name not in text] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"
