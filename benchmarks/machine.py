"""Time this machine: trajmatch beside the strongest baselines in PyTorch, with the same results.

    python benchmarks/machine.py                  # two minutes
    python benchmarks/machine.py --seconds 300    # leaves the compiler more time
    python benchmarks/machine.py --json           # the record instead of tables

The outer iteration beside PyTorch's unrolled graph, the adjoint on ``torch.func`` and the same
under ``torch.compile``; peak memory; expert steps; and the rates of the machine. The exit status
is 1 if results that should agree do not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench import facts, tables
from bench.expert import measure_expert
from bench.memory import memory_of
from bench.outer import measure_cell
from bench.program import line, program
from bench.rates import machine_rates
from bench.sizes import HEADLINE, Size, parse_size
from rich.console import Console, Group

from trajmatch.device import usable_device
from trajmatch.errors import UserError

#: Seconds of each part on two cores: these are left for the parts that are still to come.
COMPILING = 45.0
FUNC_ADJOINT = 20.0
CELL = 12.0
MEMORY = 13.0
EXPERT = 12.0

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
    parser.add_argument("--seconds", type=float, default=120.0, help="time to spend, about")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each variant")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=parse_size,
        default=HEADLINE,
        help="outer iterations, each width,batch,N",
    )
    parser.add_argument("--json", action="store_true", help="print the whole record as JSON")
    config = parser.parse_args(argv)
    if not config.seconds > 0:
        raise UserError(f"--seconds should be positive, but is {config.seconds}")
    if config.rounds < 1:
        raise UserError(f"--rounds should be at least 1, but is {config.rounds}")
    record = measure(config.sizes, usable_device(config.device), config.seconds, config.rounds)
    if config.json:
        print(json.dumps(record, indent=2))
    else:
        Console().print(as_tables(record))
    agreements = [cell["agreement"] for cell in record["cells"]] + record["experts"]
    return 0 if all(each["agree"] for each in agreements) else 1


def measure(sizes: Sequence[Size], device: str, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the record of the machine, within about as many seconds as are given."""
    began = time.perf_counter()
    record: dict[str, Any] = {"machine": facts.machine(device), "origin": facts.origin()}
    say("rates of the machine")
    record["rates"] = machine_rates(device)
    record["cells"] = []
    for index, size in enumerate(sizes):
        say(f"outer iteration, width,batch,N {size.key}")
        later = MEMORY + EXPERT + CELL * (len(sizes) - index - 1)
        left = seconds - (time.perf_counter() - began) - later
        record["cells"].append(
            measure_cell(size, device=device, rounds=rounds, **within(left, seconds))
        )
    record["summary"] = tables.ratio_summary(record["cells"])
    say("peak memory")
    record["memory"] = memory_of(sizes[-1], MEMORY_STEPS, PREDICTED_STEPS, device)
    say("expert steps")
    record["experts"] = [
        measure_expert(width, steps=2, device=device, rounds=rounds)
        for width in sorted({size.width for size in sizes})
    ]
    return {**record, "seconds": time.perf_counter() - began}


def within(allowed: float, seconds: float) -> dict[str, Any]:
    """Return arguments of ``measure_cell`` that keep to the seconds allowed for one cell."""
    leave_out = {}
    timing = allowed
    if allowed >= COMPILING + CELL:
        timing -= COMPILING
    else:
        leave_out["compiled_adjoint"] = (
            f"compiling takes about {COMPILING:.0f} s; give --seconds more than {seconds:g}"
        )
    if timing < FUNC_ADJOINT:
        leave_out["func_adjoint"] = f"no time; give --seconds more than {seconds:g}"
    # three of the variants take most of the time
    return {"leave_out": leave_out, "seconds_per_variant": max(timing, CELL) / 3}


def as_tables(record: dict[str, Any]) -> Group:
    """Format the record for rich."""
    machine, origin, cells = record["machine"], record["origin"], record["cells"]
    return Group(
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"trajmatch {origin['trajmatch']} ({origin['commit'] or 'no commit'}), {origin['date']}",
        tables.outer_table(cells),
        *tables.notes(cells),
        *map(line, record["experts"]),
        tables.memory_table(record["memory"]),
        *tables.rate_lines(record["rates"], cells),
        tables.agreement_line(cells),
    )


def say(what: str) -> None:
    """Print progress on the standard error stream."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
