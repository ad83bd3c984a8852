"""The cost of cuDNN's settings: ``benchmark`` and ``deterministic``, on and off."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from bench.problem import make_problem
from bench.sizes import Size
from bench.variants import VARIANTS

from gpu_stages.measure import changed, measure
from gpu_stages.replays import record_for, replayed
from gpu_stages.settings import Record, Settings
from trajmatch.distill.objectives import Plan

SIZES = [Size(128, 100, 20), Size(32, 10, 20)]
SMALLEST = [Size(4, 3, 2, depth=2, image_size=8)]
PLAN = Plan(tape_bytes=16 * 2**30)


def run(settings: Settings, record: Record) -> None:
    """Time an outer iteration; with ``deterministic``, different bits of two calls are a fault."""
    for size in SMALLEST if settings.quick else SIZES:
        rows: dict[str, dict[str, Any]] = {}
        for benchmark, deterministic in product((False, True), repeat=2):
            name = f"benchmark {benchmark}, deterministic {deterministic}"
            chosen = {"benchmark": benchmark, "deterministic": deterministic}
            with changed(torch.backends.cudnn, **chosen):
                problem = make_problem(size, settings.device)
                graph = replayed(problem, record_for(settings), plan=PLAN)
                times = measure(graph, settings.device, 2 if settings.quick else 7, 3, longest=2.0)
                pairs = zip(*(VARIANTS["trajmatch"](problem) for _ in range(2)), strict=True)
                same = all(torch.equal(*pair) for pair in pairs)
            rows[name] = {**times, "equal_bits": same}
            default = next(iter(rows.values()))["median"]
            rows[name]["ratio"] = times["median"] / default
            record.put(size.key, rows)
            print(f"{size.key}, {name}: {1000 * times['median']:.2f} ms, equal bits {same}")
            if deterministic and not same:
                record.fault(f"{size.key}, {name}: two calls gave different bits")
