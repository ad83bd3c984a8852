"""The record of the grid: what is measured, kept, skipped and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grid
import pytest
from bench import facts
from bench.sizes import GRID, HEADLINE, Size
from bench.variants import BASELINES

from trajmatch.errors import UserError

pytestmark = pytest.mark.harness

CELLS = [Size(4, 2, 1), Size(4, 2, 3), Size(4, 5, 1)]


class Measurements:
    """Stands for the processes, and keeps what was asked of them."""

    def __init__(self) -> None:
        self.status = "measured"
        self.fails_at: str | None = None
        self.groups: list[list[str]] = []
        self.memories: list[str] = []
        self.ended = 0

    def cells(self, sizes: Sequence[Size], memory: dict[str, Any], **_: Any) -> Iterator[dict]:
        assert set(memory) == {name for names in BASELINES.values() for name in names}
        self.groups.append([size.key for size in sizes])
        try:
            for size in sizes:
                if size.key == self.fails_at:
                    raise UserError("no memory")
                yield {
                    "size": vars(size),
                    "rows": {"eager_unroll_nchw": {"status": self.status}},
                    "ratios": {"trajmatch": {"eager_unroll": 2.0 * size.steps}},
                }
        finally:
            self.ended += 1

    def memory(self, size: Size, name: str, device: str) -> dict[str, float]:
        self.memories.append(size.shape)
        return {"intercept": 1.0, "slope": 1.0}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Measurements:
    measurements = Measurements()
    monkeypatch.setattr(grid, "measure_cells", measurements.cells)
    monkeypatch.setattr(grid, "memory_over_steps", measurements.memory)
    monkeypatch.setattr(grid, "machine_rates", lambda device: {"copy_gbps": 1.0})
    return measurements


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "record.json"


def test_the_headline_sizes_come_first_and_the_whole_grid_follows() -> None:
    assert tuple(dict.fromkeys((*HEADLINE, *GRID))) == grid.ALL_CELLS


def test_every_cell_is_measured_and_written_once(path: Path, made: Measurements) -> None:
    record = grid.run_grid(path, CELLS)
    assert made.groups == [["4,2,1", "4,2,3"], ["4,5,1"]]  # a process for each shape
    assert made.memories == ["4,2"] * len(BASELINES) + ["4,5"] * len(BASELINES)
    assert made.ended == 2
    assert json.loads(path.read_text()) == record
    assert set(record) == {"machine", "rates", "cells", "memory", "summary"}
    assert set(record["cells"]) == {size.key for size in CELLS}
    assert all(cell["origin"].keys() == facts.origin().keys() for cell in record["cells"].values())
    assert record["summary"]["trajmatch"]["eager_unroll"]["worst"] == 2.0
    assert grid.run_grid(path, CELLS) == record
    assert len(made.groups) == 2
    grid.run_grid(path, CELLS, fresh=True)
    assert len(made.groups) == 4


def test_a_stopped_run_goes_on_where_it_was(
    path: Path, made: Measurements, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ticks = iter([0.0, 0.0, 0.0, 9.0, 9.0])  # the time is up after the first cell
    monkeypatch.setattr(grid.time, "monotonic", lambda: next(ticks))
    grid.run_grid(path, CELLS, budget=5.0)
    assert "2 cells are left; call again to go on" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["cells"]) == ["4,2,1"]
    assert made.ended == 1  # its process is not left behind
    monkeypatch.setattr(grid.time, "monotonic", lambda: 0.0)
    grid.run_grid(path, CELLS)
    assert "3 cells, 1 of them finished before" in capsys.readouterr().out
    assert made.groups[1:] == [["4,2,3"], ["4,5,1"]]


def test_a_process_that_fails_leaves_the_other_cells(path: Path, made: Measurements) -> None:
    made.fails_at = "4,2,3"
    with pytest.raises(UserError, match="no memory"):
        grid.run_grid(path, CELLS)
    assert list(json.loads(path.read_text())["cells"]) == ["4,2,1", "4,5,1"]


def test_cells_that_were_not_linear_are_measured_again(path: Path, made: Measurements) -> None:
    made.status = "not_linear"
    for _ in range(2):
        grid.run_grid(path, CELLS)
    assert made.groups == 2 * [["4,2,1", "4,2,3"], ["4,5,1"]]


def test_a_record_of_another_machine_is_refused(path: Path, made: Measurements) -> None:
    record = grid.run_grid(path, CELLS)
    record["machine"]["threads"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="of another machine or setting"):
        grid.open_record(path, "cpu")


def test_the_record_of_the_project_is_shown(capsys: Any) -> None:
    path = Path(grid.__file__).parent / "results" / "outer_iteration_cpu.json"
    cells = grid.finished_cells(json.loads(path.read_text()))
    order = [size.key for size in grid.ALL_CELLS]
    keys = [Size(**cell["size"]).key for cell in cells]
    assert [key for key in order if key in keys] == keys
