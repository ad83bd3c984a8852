"""Time this machine: trajmatch beside the strongest baselines in PyTorch, with the same results.

    python benchmarks/machine.py          # about five minutes
    python benchmarks/machine.py --json   # the record instead of tables

The outer iteration beside PyTorch's unrolled graph, the adjoint on ``torch.func`` and the same
under ``torch.compile``; peak memory; expert steps; and the rates of the machine. The exit status
is 1 if results that should agree do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import facts
from bench.expert import measure_expert
from bench.memory import memory_of
from bench.program import line, program
from bench.sizes import HEADLINE, parse_size
from bench.tables import memory_lines
from grid import run_grid, show

from trajmatch.device import usable_device

#: Memory is measured at few steps and predicted for many.
MEMORY_STEPS = {"trajmatch": (2, 10), "eager_unroll_nchw": (1, 3)}
PREDICTED_STEPS = 80


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure the machine and print tables or the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each variant")
    parser.add_argument(
        "--sizes", nargs="+", type=parse_size, default=HEADLINE, help="each width,batch,N"
    )
    parser.add_argument("--json", action="store_true", help="print the whole record as JSON")
    given = parser.parse_args(argv)
    device, rounds = usable_device(given.device), max(1, given.rounds)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        record = run_grid(path, given.sizes, device, rounds=rounds, seconds_per_variant=10.0)
        print("peak memory and expert steps", flush=True)
        record["memory"] = memory_of(given.sizes[-1], MEMORY_STEPS, PREDICTED_STEPS, device)
        record["experts"] = [
            measure_expert(width, steps=2, device=device, rounds=rounds)
            for width in sorted({size.width for size in given.sizes})
        ]
    if given.json:
        print(json.dumps({**record, "origin": facts.origin()}, indent=2))
    else:
        show(record)
        print(*map(line, record["experts"]), *memory_lines(record["memory"]), sep="\n")
    agreements = [cell["agreement"] for cell in record["cells"].values()] + record["experts"]
    return 0 if all(each["agree"] for each in agreements) else 1


if __name__ == "__main__":
    sys.exit(main())
