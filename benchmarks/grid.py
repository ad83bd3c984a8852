"""The record of the outer iteration, ours beside the baselines, over widths, batches and steps.

    python benchmarks/grid.py --budget 3600

goes on where it stopped before: a cell is written as soon as it is finished. Without ``--cells``,
the three headline sizes come first, then the grid from the least work to the most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from bench import facts, tables
from bench.memory import memory_over_steps
from bench.outer import measure_cells
from bench.program import program
from bench.rates import machine_rates
from bench.sizes import GRID, HEADLINE, Size, parse_size
from bench.variants import BASELINES
from rich.console import Console

from trajmatch import files
from trajmatch.errors import UserError

#: Cells in the order in which they are measured.
ALL_CELLS = tuple(dict.fromkeys((*HEADLINE, *GRID)))


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure the cells that the record lacks and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds to begin cells")
    parser.add_argument("--cells", nargs="+", type=parse_size, default=ALL_CELLS)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, help="record (results/outer_iteration_DEVICE.json)")
    parser.add_argument("--fresh", action="store_true", help="measure again what the record holds")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each variant")
    parser.add_argument(
        "--seconds-per-variant",
        type=float,
        default=30.0,
        help="a variant whose rounds would take longer is measured at fewer steps",
    )
    given = parser.parse_args(argv)
    kind = given.device.partition(":")[0]
    path = given.out or Path(__file__).parent / "results" / f"outer_iteration_{kind}.json"
    settings = {"rounds": given.rounds, "seconds_per_variant": given.seconds_per_variant}
    record = run_grid(path, given.cells, given.device, given.budget, given.fresh, **settings)
    show(record)
    print(path)
    return 0 if all(cell["agreement"]["agree"] for cell in record["cells"].values()) else 1


def show(record: dict[str, Any]) -> None:
    """Print the tables of a record."""
    cells, console = finished_cells(record), Console(width=140)
    console.print(tables.outer_table(cells))
    lines = [*tables.notes(cells), *tables.ratio_lines(cells)]
    lines += [*tables.rate_lines(record["rates"], cells), tables.agreement_line(cells)]
    console.print(*lines, sep="\n")


def run_grid(
    path: Path,
    cells: Sequence[Size] = ALL_CELLS,
    device: str = "cpu",
    budget: float = float("inf"),
    fresh: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Measure the cells that a record lacks, and write it after each.

    Args:
        path: The record, a JSON file. What it holds is kept, unless ``fresh``.
        cells: Cells to measure, in this order; neighbours of one shape share a process.
        device: Where to run.
        budget: Seconds after which no further cell is begun.
        fresh: True to measure again what the record holds.
        settings: Arguments of :func:`bench.outer.measure_cell`.

    Returns:
        The record: ``machine``; ``rates`` (:mod:`bench.rates`); ``cells`` by size
        (:func:`bench.outer.measure_cell`), each with its ``origin``; ``memory`` by shape;
        ``summary``, the worst ratios and geometric means.

    Raises:
        UserError: The file holds a record of another machine, or cannot be read or written; or,
            after all others were measured, that a process failed.
    """
    began = time.monotonic()
    files.check_writable(path.parent)
    record = open_record(path, device)
    if fresh:
        record["rates"] = {}
        for size in cells:
            record["cells"].pop(size.key, None)
            record["memory"].pop(size.shape, None)
    record["rates"] = record["rates"] or machine_rates(device)
    missing = unfinished(record, cells)
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before")
    failures = []
    for shape, group in groupby(missing, key=lambda size: size.shape):
        sizes = list(group)
        if time.monotonic() - began >= budget:
            break
        try:
            if shape not in record["memory"]:
                print(f"memory of width,batch {shape}", flush=True)
                record["memory"][shape] = memory_of_baselines(sizes[0], device)
            rows = rows_of_memory(record["memory"][shape])
            results = measure_cells(sizes, memory=rows, device=device, **settings)
            with closing(results):  # ends the process behind them
                for size in sizes:
                    if time.monotonic() - began >= budget:
                        break
                    print(f"width,batch,N {size.key}", flush=True)
                    record["cells"][size.key] = {**next(results), "origin": facts.origin()}
                    record["summary"] = tables.ratio_summary(list(record["cells"].values()))
                    files.write_json(path, record)
        except UserError as error:
            print(error, flush=True)
            failures.append(str(error))
    if failures:
        raise UserError("; ".join(failures))
    if left := unfinished(record, cells):
        print(f"{len(left)} cells are left; call again to go on")
    return record


def open_record(path: Path, device: str) -> dict[str, Any]:
    """Return the record in a file, or an empty one.

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
    """Return cells that the record lacks, or has with a baseline whose time was not linear in N."""
    held = record["cells"]
    return [
        size
        for size in cells
        if size.key not in held
        or any(row["status"] == "not_linear" for row in held[size.key]["rows"].values())
    ]


def finished_cells(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a record in the order in which they are measured."""
    order = [size.key for size in ALL_CELLS]
    return sorted(
        record["cells"].values(),
        key=lambda cell: order.index(key) if (key := Size(**cell["size"]).key) in order else -1,
    )


def memory_of_baselines(size: Size, device: str) -> dict[str, dict[str, Any]]:
    """Measure the memory of each baseline at a shape; both layouts of eager need the same."""
    return {names[0]: memory_over_steps(size, names[0], device) for names in BASELINES.values()}


def rows_of_memory(memory: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The memory of each variant, from that of those measured."""
    return {name: memory[names[0]] for names in BASELINES.values() for name in names}


if __name__ == "__main__":
    sys.exit(main())
