"""The record of the grid: what is measured, kept, skipped and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bench import facts
from bench.grid import (
    ALL_CELLS,
    MEMORY_OF,
    finished_cells,
    open_record,
    rows_of_memory,
    run_grid,
)
from bench.sizes import GRID, HEADLINE, Size

from trajmatch.errors import UserError

pytestmark = pytest.mark.harness

CELLS = [Size(4, 2, 1), Size(4, 2, 3), Size(4, 5, 1)]


class Measurements:
    """Stands for the processes, and keeps what was asked of them."""

    def __init__(self, status: str = "measured") -> None:
        self.status = status
        self.groups: list[list[str]] = []
        self.memories: list[str] = []
        self.ended = 0

    def cells(self, sizes: Sequence[Size], memory: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert set(memory) == {name for names in MEMORY_OF.values() for name in names}
        self.groups.append([size.key for size in sizes])
        try:
            for size in sizes:
                yield {
                    "size": vars(size),
                    "rows": {"eager_unroll_nchw": {"status": self.status}},
                    "ratios": {"trajmatch": {"eager_unroll": 2.0 * size.steps}},
                }
        finally:
            self.ended += 1

    def memory(self, size: Size) -> dict[str, dict[str, Any]]:
        self.memories.append(size.shape)
        return {name: {"intercept": 1.0, "slope": 1.0} for name in MEMORY_OF}


def run(path: Path, measurements: Measurements, **settings: Any) -> dict[str, Any]:
    return run_grid(
        path,
        CELLS,
        measure=measurements.cells,
        measure_memory=measurements.memory,
        measure_rates=lambda device: {"copy_gbps": 1.0},
        **settings,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "record.json"


def test_the_headline_sizes_come_first_and_the_whole_grid_follows() -> None:
    assert ALL_CELLS[:3] == HEADLINE and ALL_CELLS[3:] == GRID


def test_every_cell_is_measured_and_written(path: Path) -> None:
    measurements = Measurements()
    record = run(path, measurements)
    assert measurements.groups == [["4,2,1", "4,2,3"], ["4,5,1"]]  # a process for each shape
    assert measurements.memories == ["4,2", "4,5"]
    assert measurements.ended == 2
    assert json.loads(path.read_text()) == record
    assert set(record) == {"machine", "rates", "cells", "memory", "summary"}
    assert record["rates"] == {"copy_gbps": 1.0}
    assert set(record["cells"]) == {size.key for size in CELLS}
    assert all(cell["origin"].keys() == facts.origin().keys() for cell in record["cells"].values())
    assert record["summary"]["trajmatch"]["eager_unroll"]["worst"] == 2.0


def test_finished_cells_are_skipped(path: Path) -> None:
    first = run(path, Measurements())
    again = Measurements()
    assert run(path, again) == first
    assert again.groups == again.memories == []


def test_a_stopped_run_goes_on_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 0.0, 9.0, 9.0])  # the time is up after the first cell
    monkeypatch.setattr("bench.grid.time.monotonic", lambda: next(ticks))
    stopped, lines = Measurements(), []
    run(path, stopped, budget=5.0, tell=lines.append)
    assert lines[-1] == "2 cells are left; call again to go on"
    assert list(json.loads(path.read_text())["cells"]) == ["4,2,1"]
    assert stopped.ended == 1  # its process is not left behind
    monkeypatch.undo()
    resumed = Measurements()
    run(path, resumed, tell=lines.append)
    assert "3 cells, 1 of them finished before" in lines
    assert resumed.groups == [["4,2,3"], ["4,5,1"]]
    assert resumed.memories == ["4,5"]


def test_a_process_that_fails_leaves_the_other_cells(path: Path) -> None:
    class Failing(Measurements):
        def cells(self, sizes: Sequence[Size], memory: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for cell in super().cells(sizes, memory):
                if cell["size"] == vars(CELLS[1]):
                    raise UserError("no memory")
                yield cell

    with pytest.raises(UserError, match="no memory"):
        run(path, Failing())
    assert list(json.loads(path.read_text())["cells"]) == ["4,2,1", "4,5,1"]


def test_cells_that_were_not_linear_are_measured_again(path: Path) -> None:
    run(path, Measurements("not_linear"))
    again = Measurements()
    run(path, again)
    assert again.groups == [["4,2,1", "4,2,3"], ["4,5,1"]]


def test_fresh_measures_everything_again(path: Path) -> None:
    run(path, Measurements())
    again = Measurements()
    run(path, again, fresh=True)
    assert len(again.groups) == len(again.memories) == 2


def test_a_record_of_another_machine_is_refused(path: Path) -> None:
    run(path, Measurements())
    record = json.loads(path.read_text())
    record["machine"]["threads"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="of another machine or setting"):
        open_record(path, "cpu")


def test_cells_are_listed_in_the_order_of_measuring(path: Path) -> None:
    sizes = [GRID[3], Size(5, 5, 5), HEADLINE[0]]
    record = {"cells": {size.key: {"size": vars(size)} for size in sizes}}
    listed = [Size(**cell["size"]) for cell in finished_cells(record)]
    assert listed == [Size(5, 5, 5), HEADLINE[0], GRID[3]]


def test_both_layouts_of_eager_share_what_was_measured() -> None:
    rows = rows_of_memory({"eager_unroll_nchw": {"slope": 1.0}})
    assert rows["eager_unroll_nhwc"] == rows["eager_unroll_nchw"] == {"slope": 1.0}
