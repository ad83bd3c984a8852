"""The record of the outer iteration over the whole grid, measured cell by cell."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from bench import facts
from bench.memory import memory_over_steps
from bench.outer import measure_cells
from bench.rates import machine_rates
from bench.sizes import GRID, HEADLINE, Size
from bench.tables import ratio_summary
from trajmatch import files
from trajmatch.errors import UserError

#: Cells in the order in which they are measured.
ALL_CELLS = (*HEADLINE, *GRID)

#: Baselines whose memory is measured before they are timed. Both layouts of eager need the same.
MEMORY_OF = {
    "eager_unroll_nchw": ("eager_unroll_nchw", "eager_unroll_nhwc"),
    "func_adjoint": ("func_adjoint",),
    "compiled_adjoint": ("compiled_adjoint",),
}

#: Measures the memory of a shape; and cells of one shape, each told as soon as it is finished.
MeasureMemory = Callable[[Size], dict[str, dict[str, Any]]]
MeasureCells = Callable[..., Generator[dict[str, Any], None, None]]
MeasureRates = Callable[[str], dict[str, Any]]
Tell = Callable[[str], None]


def run_grid(
    path: Path,
    cells: Sequence[Size] = ALL_CELLS,
    *,
    device: str = "cpu",
    budget: float = float("inf"),
    fresh: bool = False,
    tell: Tell = lambda line: None,
    measure: MeasureCells | None = None,
    measure_memory: MeasureMemory | None = None,
    measure_rates: MeasureRates = machine_rates,
) -> dict[str, Any]:
    """Measures the cells that a record lacks, and writes it after each.

    Args:
        path: The record, a JSON file. What it holds is kept, unless ``fresh``.
        cells: What to measure, in this order; neighbours of one shape share a process.
        device: Where to run.
        budget: Seconds after which no further cell is begun.
        fresh: Whether to measure again what the record holds.
        tell: Told what is being done.
        measure: Measures cells of one shape: :func:`bench.outer.measure_cells`.
        measure_memory: Measures the memory that the baselines of a shape need.
        measure_rates: Measures what a device can do.

    Returns:
        The record: ``machine``; ``rates`` (:mod:`bench.rates`); ``cells`` by size
        (:func:`bench.outer.measure_cell`), each with its ``origin``; ``memory`` by shape;
        ``summary``, the worst ratios and geometric means.

    Raises:
        UserError: The file holds a record of another machine, or cannot be read or written; or,
            after all others were measured, that a process failed.
    """
    measure = measure or partial(measure_cells, device=device)
    measure_memory = measure_memory or partial(memory_of_baselines, device=device)
    began = time.monotonic()
    files.check_writable(path.parent)
    record = open_record(path, device)
    wanted = list(dict.fromkeys(cells))
    if fresh:
        record["rates"] = {}
        for size in wanted:
            record["cells"].pop(size.key, None)
            record["memory"].pop(size.shape, None)
    if not record["rates"]:
        record["rates"] = measure_rates(device)
    missing = unfinished(record, wanted)
    tell(f"{len(wanted)} cells, {len(wanted) - len(missing)} of them finished before")
    failures = []
    for _, group in groupby(missing, key=lambda size: size.shape):
        if time.monotonic() - began >= budget:
            break
        sizes = list(group)
        try:
            memory = record["memory"].get(sizes[0].shape)
            if memory is None:
                tell(f"memory of width,batch {sizes[0].shape}")
                memory = record["memory"][sizes[0].shape] = measure_memory(sizes[0])
                _write(path, record)
            results = measure(sizes, memory=rows_of_memory(memory))
            with closing(results):  # ends the process behind them
                for size, cell in _until(began + budget, sizes, results, tell):
                    record["cells"][size.key] = {**cell, "origin": facts.origin()}
                    _write(path, record)
        except UserError as error:
            tell(str(error))
            failures.append(str(error))
    if failures:
        raise UserError("; ".join(failures))
    if left := unfinished(record, wanted):
        tell(f"{len(left)} cells are left; call again to go on")
    return record


def open_record(path: Path, device: str) -> dict[str, Any]:
    """The record of this machine: what the file holds, or an empty one.

    Raises:
        UserError: It cannot be read, or is that of another machine.
    """
    machine = facts.machine(device)
    if not path.exists():
        return {"machine": machine, "rates": {}, "cells": {}, "memory": {}, "summary": {}}
    record = files.read_json(path)
    found = record.get("machine")
    if found != machine:
        raise UserError(
            f"{path} holds a record of another machine or setting ({found}, here {machine}); "
            "choose another file or remove it"
        )
    return record


def unfinished(record: dict[str, Any], cells: Sequence[Size]) -> list[Size]:
    """Cells that the record lacks, or has with a baseline whose time was not linear in N."""
    held = record["cells"]
    return [
        size
        for size in cells
        if size.key not in held
        or any(row["status"] == "not_linear" for row in held[size.key]["rows"].values())
    ]


def memory_of_baselines(size: Size, device: str) -> dict[str, dict[str, Any]]:
    """What each baseline needs at a shape, by the name of the variant that was measured."""
    return {name: memory_over_steps(size, name, device) for name in MEMORY_OF}


def finished_cells(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a record in the order in which they are measured."""
    order = [size.key for size in dict.fromkeys(ALL_CELLS)]
    return sorted(
        record["cells"].values(),
        key=lambda cell: order.index(key) if (key := Size(**cell["size"]).key) in order else -1,
    )


def rows_of_memory(memory: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The memory of each variant, from that of those measured."""
    return {name: found for measured, found in memory.items() for name in MEMORY_OF[measured]}


def _write(path: Path, record: dict[str, Any]) -> None:
    record["summary"] = ratio_summary(list(record["cells"].values()))
    files.write_json(path, record)


def _until(
    deadline: float, sizes: Sequence[Size], results: Iterator[dict[str, Any]], tell: Tell
) -> Iterator[tuple[Size, dict[str, Any]]]:
    """Sizes with their results, as long as there is time."""
    for size in sizes:
        if time.monotonic() >= deadline:
            return
        tell(f"width,batch,N {size.key}")
        yield size, next(results)
