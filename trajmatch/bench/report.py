"""A benchmark of this machine within a few minutes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from rich.console import Group

from trajmatch.bench import facts, tables
from trajmatch.bench.config import BenchConfig
from trajmatch.bench.expert import measure_expert
from trajmatch.bench.memory import memory_over_steps, predicted_bytes
from trajmatch.bench.outer import measure_cell
from trajmatch.bench.rates import machine_rates
from trajmatch.bench.sizes import Size, parse_size
from trajmatch.device import usable_device
from trajmatch.fields import expect_config
from trajmatch.progress import NoProgress, ProgressLike

#: Seconds that parts take on two cores: what must be left for those that are still to come.
COMPILING = 45.0
FUNC_ADJOINT = 20.0
CELL = 12.0
MEMORY = 13.0
EXPERT = 12.0

#: Memory is measured at few steps and told for many.
MEMORY_STEPS = {"trajmatch": (2, 10), "eager_unroll_nchw": (1, 3)}
PREDICTED_STEPS = 80

#: Parts of a report besides the cells: rates, memory, experts.
OTHER_PARTS = 3


def run_bench(config: BenchConfig, progress: ProgressLike | None = None) -> dict[str, Any]:
    """Measures the machine: rates, outer iterations, peak memory, expert steps.

    Args:
        config: What to measure, and for how long.
        progress: Told when a part is finished.

    Returns:
        The record, which JSON can hold: ``machine`` and ``origin``
        (:mod:`trajmatch.bench.facts`), ``rates`` (:mod:`trajmatch.bench.rates`), ``cells``
        (:mod:`trajmatch.bench.outer`), ``summary`` (worst ratios and geometric means), ``memory``,
        ``experts``, and ``seconds`` in all.

    Raises:
        UserError: There is no such device or size.
    """
    expect_config("run_bench", config, BenchConfig)
    config = replace(config, device=usable_device(config.device))
    sizes = [parse_size(text) for text in config.sizes]
    progress = progress or NoProgress()
    began = time.perf_counter()

    def left() -> float:
        return config.seconds - (time.perf_counter() - began)

    record: dict[str, Any] = {"machine": facts.machine(config.device), "origin": facts.origin()}
    record["rates"] = machine_rates(config.device)
    progress.update(1)
    cells = []
    for index, size in enumerate(sizes):
        later = MEMORY + EXPERT + CELL * (len(sizes) - index - 1)
        cells.append(_cell(config, size, left() - later))
        progress.update(2 + index)
    record["cells"] = cells
    record["summary"] = tables.ratio_summary(cells)
    record["memory"] = _memory(sizes[-1], config.device)
    progress.update(2 + len(sizes))
    record["experts"] = [
        measure_expert(width, steps=2, device=config.device, rounds=config.rounds)
        for width in sorted({size.width for size in sizes})
    ]
    progress.update(len(sizes) + OTHER_PARTS)
    return {**record, "seconds": time.perf_counter() - began}


def as_tables(record: dict[str, Any]) -> Group:
    """The record for a reader, to be printed by rich."""
    machine, origin, cells = record["machine"], record["origin"], record["cells"]
    return Group(
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, "
        f"trajmatch {origin['trajmatch']} ({origin['commit'] or 'no commit'}), {origin['date']}",
        tables.outer_table(cells),
        *tables.notes(cells),
        tables.expert_table(record["experts"]),
        tables.memory_table(record["memory"]),
        tables.rates_table(record["rates"], cells),
        tables.agreement_line(cells),
    )


def _cell(config: BenchConfig, size: Size, allowed: float) -> dict[str, Any]:
    leave_out = {}
    timing = allowed
    if allowed >= COMPILING + CELL:
        timing -= COMPILING
    else:
        leave_out["compiled_adjoint"] = (
            f"compiling takes about {COMPILING:.0f} s; give --seconds more than {config.seconds:g}"
        )
    if timing < FUNC_ADJOINT:
        leave_out["func_adjoint"] = f"no time; give --seconds more than {config.seconds:g}"
    return measure_cell(
        size,
        device=config.device,
        rounds=config.rounds,
        seconds_per_variant=max(timing, CELL) / 3,  # three of them take most of it
        leave_out=leave_out,
    )


def _memory(size: Size, device: str) -> dict[str, Any]:
    variants = {}
    for name, steps in MEMORY_STEPS.items():
        found = memory_over_steps(size, name, device, steps)
        if "unavailable" not in found:
            found["predicted_bytes"] = predicted_bytes(found, PREDICTED_STEPS)
        variants[name] = found
    return {
        "size": {"width": size.width, "batch": size.batch},
        "predicted_at": PREDICTED_STEPS,
        "variants": variants,
    }
