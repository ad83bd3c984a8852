"""Graphs on two GPUs of one process: each gives the results of its own device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from bench.agreement import ALL_STEPS, agreement
from bench.problem import make_problem
from bench.recorders import call_again
from bench.sizes import Size
from bench.variants import VARIANTS

from gpu_stages.replays import replayed
from gpu_stages.settings import NotRun, Record, Settings
from trajmatch.recording import cuda_graph

SIZE = Size(32, 10, 20)
SMALLEST = Size(4, 3, 3, depth=2, image_size=8)


def run(settings: Settings, record: Record) -> None:
    """Record and replay on both, in turns; results that differ from eager ones are a fault."""
    if settings.device != "cuda":
        check(["cpu", "cpu"], SMALLEST, record)
        return
    if torch.cuda.device_count() < 2:
        raise NotRun("there is one GPU")
    check(["cuda:0", "cuda:1"], SMALLEST if settings.quick else SIZE, record)


def check(names: Sequence[str], size: Size, record: Record) -> None:
    """Compare graphs with calls on these devices; on the CPU with the stand-in for a graph."""
    devices = [torch.device(name) for name in names]
    problems = [make_problem(size, device) for device in devices]
    graphs = [
        replayed(problem, partial(cuda_graph, device=device) if problem.lr.is_cuda else call_again)
        for problem, device in zip(problems, devices, strict=True)
    ]
    for number in range(4):  # the second records, the others replay
        for index, (problem, graph) in enumerate(zip(problems, graphs, strict=True)):
            problem.images.mul_(0.9)
            results = {"eager": VARIANTS["trajmatch"](problem), "graph": graph()[0]}
            agreed = agreement(results, "eager", ALL_STEPS[problem.lr.device.type])
            record.put(f"{names[index]} ({index}), call {number}", agreed["differences"])
            if not agreed["agree"]:
                record.fault(f"{names[index]}, call {number}: {agreed['differences']}")
