"""Memory that `trajmatch distill` announces beside the memory that it takes.

    python benchmarks/plan_memory.py

runs one outer iteration of every size of the benchmark's grid up to 100 images in a process of its
own, with and without activations kept, and writes the record. Its status is 1 where a prediction is
off by more than 15 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import facts
from bench.announced import measure
from bench.process import in_process
from bench.program import program
from bench.sizes import GRID, parse_size

from trajmatch import files

RESULTS = Path(__file__).parent / "results"

#: The largest difference of prediction and peak, relative to the peak.
TOLERANCE = 0.15
LARGEST_BATCH = 100


@program
def main(argv: Sequence[str] | None) -> int:
    """Compare predictions and peaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [each for each in GRID if each.batch <= LARGEST_BATCH]
    parser.add_argument("--cells", nargs="+", type=parse_size, default=sizes)
    parser.add_argument("--tapes", nargs="+", type=int, default=[0, 1024], help="MB, each")
    parser.add_argument("--out", type=Path, default=RESULTS / "plan_memory_cpu.json")
    given = parser.parse_args(argv)
    rows = []
    for size in given.cells:
        for tape in given.tapes:
            job = {"size": size.key, "tape_mb": tape}
            (found,) = in_process(measure, job)
            rows.append({**job, **found})
            print(
                f"{size.key}, tape {tape} MB: predicted {found['predicted_bytes'] / 1e6:.0f} MB, "
                f"took {found['peak_bytes'] / 1e6:.0f} MB ({found['off']:+.1%})",
                flush=True,
            )
    worst = max(abs(row["off"]) for row in rows)
    print(f"{len(rows)} runs, the worst prediction is off by {worst:.1%}")
    record = {"machine": facts.machine("cpu"), "origin": facts.origin(), "rows": rows}
    files.write_json(given.out, {**record, "worst": worst})
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
