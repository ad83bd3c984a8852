"""Outer iterations on images of 64 and 128 pixels, as Tiny-ImageNet and ImageNet's subsets have."""

from __future__ import annotations

from typing import Any

from bench.problem import make_problem
from bench.sizes import Size

from gpu_stages.outer_iteration import eager, ratios, summary, timed
from gpu_stages.settings import Record, Settings

#: Depths of the papers' networks for these images.
SIZES = [Size(128, 10, 10, depth=4, image_size=64), Size(128, 10, 10, depth=5, image_size=128)]
SMALLEST = [Size(4, 3, 2, depth=2, image_size=16)]
#: Of the implementations in outer_iteration.
NAMES = ("trajmatch", "trajmatch_graph", "trajmatch_tape_graph", "eager_unroll_nchw")


def run(settings: Settings, record: Record) -> None:
    """Time ours beside eager PyTorch; a failure of ours is a fault."""
    for size in SMALLEST if settings.quick else SIZES:
        name, row, truth = f"{size.image_size} pixels", dict[str, Any](), None
        for which, implementation in eager(make_problem(size, settings.device), settings):
            if which not in NAMES:
                continue
            row[which], gradient = timed(implementation, settings, truth)
            if which == "trajmatch":
                truth = gradient
            record.put(name, {**row, "ratios": ratios(row)})
            print(f"{name}, {which}: {summary(row[which])}", flush=True)
        for which in NAMES[:3]:
            if "error" in row.get(which, {}):
                record.fault(f"{name}, {which}: {row[which]['error']}")
