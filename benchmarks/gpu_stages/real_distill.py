"""A real ``distill`` of 50 iterations: its wall time beside that of the replays alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from bench.timing import seconds

from gpu_stages.replays import record_for
from gpu_stages.settings import Record, Settings
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill import loop as loop_module
from trajmatch.distill.gradients import Graph
from trajmatch.distill.parallel import Division
from trajmatch.distill.problem import Problem
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.recording import Outputs

DATA = "fashion-mnist-mini"  # inside the package
#: Width, depth, expert's epochs and batch; images of a class, student steps, iterations.
SIZE = (128, 3, 4, 256), (10, 80, 50)
SMALLEST = (4, 1, 2, 1000), (1, 2, 4)


def run(settings: Settings, record: Record) -> None:
    """Train an expert and distil; a run without a graph is a fault."""
    (width, depth, epochs, batch), (ipc, steps, iterations) = SMALLEST if settings.quick else SIZE
    store = record.folder / "real_distill_experts"
    began = time.perf_counter()
    train_experts(
        ExpertConfig(
            out=store,
            data=DATA,
            num_experts=1,
            epochs=epochs,
            batch_size=batch,
            width=width,
            depth=depth,
            workers=1,
            device=settings.device,
            quiet=True,
        )
    )
    record.put("expert_seconds_an_epoch", (time.perf_counter() - began) / epochs)
    config = DistillConfig(
        experts=store,
        out=record.folder / "real_distill.safetensors",
        ipc=ipc,
        iterations=iterations,
        student_steps=steps,
        expert_epochs=1,
        max_start_epoch=epochs - 1,
        device=settings.device,
        quiet=True,
        snapshots=0,
    )
    graphs: list[Graph] = []
    replays: list[Callable[[], float]] = []

    def recorded(function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        outputs, replay = record_for(settings)(function)
        return outputs, lambda: replays.append(timed(replay, settings.device))

    def gradients_for(problem: Problem, division: Division) -> Graph:
        graphs.append(Graph(problem.objective, recorded))
        return graphs[0]

    began = time.perf_counter()
    with mock.patch.object(loop_module, "gradients_for", gradients_for):
        distill(config)
    lines = [json.loads(line) for line in config.log_path.read_text().splitlines()]
    wall = statistics.median(line["seconds"] for line in lines[2:])
    record.put("seconds", time.perf_counter() - began)
    record.put("wall_seconds_an_iteration", wall)
    if not graphs[0].replayed.recorded:
        record.fault("the iterations ran without a graph")
        return
    # the first two are a comparison, and that of the iteration which records
    replay = statistics.median(each() for each in replays[2:])
    record.put("replay_seconds", replay)
    record.put("share_of_the_host", 1 - replay / wall)
    print(f"{1000 * wall:.1f} ms an iteration, {1000 * replay:.1f} ms of them in the replay")


def timed(function: Callable[[], None], device: str) -> Callable[[], float]:
    """Call a function; return a callable that gives its seconds. The host does not wait."""
    if device == "cpu":
        taken = seconds(function)
        return lambda: taken
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    function()
    last.record()
    return lambda: first.elapsed_time(last) / 1000
