"""The record of the outer iteration, ours beside the baselines, over widths, batches and steps.

    python benchmarks/grid.py --budget 3600

goes on where it stopped before: a cell is written as soon as it is finished. Without ``--cells``,
the three headline sizes come first, then the grid from the least work to the most.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from trajmatch.cli.arguments import parse
from trajmatch.cli.main import SPIN_COUNT
from trajmatch.errors import UserError

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Measure the outer iteration over the grid and print the table."""

    budget: float = float("inf")
    """Seconds after which no further cell is begun."""
    cells: tuple[str, ...] = ()
    """Cells to measure, each width,batch,N. Default: all."""
    device: str = "cpu"
    """Where to run: cpu, cuda or cuda:N."""
    out: Path | None = None
    """The record. Default: results/outer_iteration_DEVICE.json beside this file."""
    fresh: bool = False
    """Measure again what the record holds."""
    rounds: int = 5
    """Timed rounds of each variant."""
    seconds_per_variant: float = 30.0
    """Where a variant's rounds would take longer, it is measured at fewer steps."""


def main() -> int:
    """Runs the program; returns its exit status."""
    config = parse(GridConfig, sys.argv[1:], "benchmarks/grid.py")
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as in the program trajmatch

    from functools import partial

    from bench import tables
    from bench.grid import ALL_CELLS, finished_cells, run_grid
    from bench.outer import measure_cells
    from bench.sizes import parse_size
    from rich.console import Console

    from trajmatch.memory import keep_freed_memory

    keep_freed_memory()

    console = Console(width=140)
    kind = config.device.partition(":")[0]
    path = config.out or RESULTS / f"outer_iteration_{kind}.json"
    try:
        record = run_grid(
            path,
            [parse_size(text) for text in config.cells] or ALL_CELLS,
            device=config.device,
            budget=config.budget,
            fresh=config.fresh,
            tell=lambda line: console.print(line, highlight=False),
            measure=partial(
                measure_cells,
                device=config.device,
                rounds=config.rounds,
                seconds_per_variant=config.seconds_per_variant,
            ),
        )
    except UserError as error:
        print(f"grid.py: error: {error.args[0]}", file=sys.stderr)
        return 2
    cells = finished_cells(record)
    console.print(tables.outer_table(cells), *tables.notes(cells), tables.ratio_table(cells))
    console.print(tables.rates_table(record["rates"], cells), tables.agreement_line(cells))
    console.print(str(path))
    return 0 if all(cell["agreement"]["agree"] for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
