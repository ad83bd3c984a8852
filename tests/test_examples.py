"""The examples run at a small scale, and print what their docstrings and the notebook show."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import time
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from trajmatch import UserError, ops
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.terms import Course, find_term
from trajmatch.images import find_parametrisation

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "demo.ipynb"
TWO_CLASSES = "--data fashion-mnist-mini?classes=0,1 --width 4 --experts 1 --epochs 2"
SMALL = {
    "mtt": f"{TWO_CLASSES} --iterations 50 --networks 1 --test-epochs 5",
    "own_term": f"{TWO_CLASSES} --iterations 2 --test-epochs 2",
    "own_parametrisation": f"{TWO_CLASSES} --iterations 2 --test-epochs 2",
    "own_student": "--width 4 --experts 1 --iterations 50 --steps 1 --test-steps 2",
    "hessian": "--images 20 --width 2 --steps 3",
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds the modules of the folder, as if started there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in SMALL:
        monkeypatch.delitem(sys.modules, name, raising=False)


def shapes(lines: Iterable[str]) -> set[str]:
    """Lines with # for numbers."""
    marked = (re.sub(r"-?\d[\d.,]*(e[+-]\d+)?", "#", line.rstrip()) for line in lines)
    return {re.sub(r"#( #)+", "#", line) for line in marked}


def shown_by(module: ModuleType) -> list[str]:
    """The output in the docstring: its last indented block."""
    *_, last = re.findall(r"(?:^    .*\n)+", module.__doc__ or "", re.M)
    return [line[4:] for line in last.splitlines()]


@pytest.mark.parametrize("name", SMALL)
def test_prints_what_its_docstring_shows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(name)
    module.main(SMALL[name].split())
    printed = capsys.readouterr().out.splitlines()
    assert shapes(printed) == shapes(shown_by(module))
    for difference in re.findall(r"relative difference (\S+)", "\n".join(printed)):
        assert float(difference) < 1e-9


def test_all_examples_are_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SMALL, "nas"}
    table = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    files = [path.name for path in EXAMPLES.iterdir() if path.is_file()]
    assert [name for name in files if f"(../examples/{name})" not in table] == []


def test_examples_need_only_what_the_package_needs() -> None:
    installed = [each for each in requires("trajmatch") or () if "extra ==" not in each]
    known = {*sys.stdlib_module_names, "trajmatch"}
    known |= {re.split(r"[^\w-]", each)[0].lower() for each in installed}
    sources = [path.read_text() for path in EXAMPLES.glob("*.py")]
    sources += [source for _, source in cells()]
    for node in ast.walk(ast.parse("\n".join(s.replace("from __future__", "# ") for s in sources))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert str(module).partition(".")[0] in known


def test_mtt_is_short() -> None:
    assert len((EXAMPLES / "mtt.py").read_text().splitlines()) <= 120


@pytest.mark.slow
def test_mtt_gains_15_points_in_two_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    importlib.import_module("mtt").main([])
    seconds = time.monotonic() - began
    printed = capsys.readouterr().out
    real, distilled = map(float, re.findall(r"images: ([\d.]+) %", printed))
    assert distilled - real >= 15, printed
    assert seconds < 120, f"{seconds:.0f} s"


def test_terms() -> None:
    loss = MatchingLoss((find_term("final"), find_term("own_term:Direction")), epochs=2)
    start, target = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 5.0])
    end = torch.tensor([1.0, 3.0])
    cosine = (2 * 4) / (2 * 5)
    distance = ops.param_distance(end, target, start).item()
    found = loss(Course(start, {5: end}, {2: target}, 5, 2)).item()
    assert found == pytest.approx(distance + 1 - cosine)

    settled = find_term("own_term:Settled:limit=5")
    memory = {"settled": torch.tensor([False, False])}
    course = Course(start, {5: end}, {2: target}, 5, 2, memory=memory)
    assert settled.remember(course)["settled"].tolist() == [False, True]
    assert settled.loss(course).item() == pytest.approx((5 - 3) ** 2 / (5 - 1) ** 2)


def test_parametrisation() -> None:
    low_rank = find_parametrisation("own_parametrisation:LowRank:rank=2")
    images = torch.randn(3, 1, 8, 6) @ torch.randn(3, 1, 6, 8)
    shape = images.shape[1:]
    assert low_rank.images_per_class(3, shape) == 3 * 64 // (2 * 16)
    rendered = low_rank.render(low_rank.initial(images, 3), shape)
    assert torch.linalg.matrix_rank(rendered).tolist() == [[2]] * 3
    # The truncation leaves out the smaller singular values.
    values = torch.linalg.svdvals(images)
    assert_close((images - rendered).square().sum((2, 3)), values[..., 2:].square().sum(-1))
    with pytest.raises(UserError, match="take --ipc 2 or more"):
        find_parametrisation("own_parametrisation:LowRank:rank=8").images_per_class(1, shape)


def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    return content


def cells() -> list[tuple[str, str]]:
    """Name and source of the code cells."""
    code = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    return [(cell["id"], "".join(cell["source"])) for cell in code]


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    small = dict(experts=1, epochs=2, width=4, iterations=2, networks=1, test_epochs=2)
    namespace: dict[str, Any] = {}
    for name, source in cells():
        exec(compile(source, f"{NOTEBOOK.name}, cell {name}", "exec"), namespace)
        if name == "settings":
            assert small.keys() == namespace.keys() - {"__builtins__"}
            namespace.update(small)
    namespace["plt"].close("all")
    stored = [output for cell in notebook()["cells"] for output in cell.get("outputs", ())]
    shown = "".join("".join(output.get("text", ())) for output in stored)
    assert shapes(capsys.readouterr().out.splitlines()) == shapes(shown.splitlines())


def test_the_notebook_is_stored_with_its_outputs() -> None:
    code = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 3
    assert NOTEBOOK.stat().st_size < 300_000


def test_the_notebook_is_valid() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
