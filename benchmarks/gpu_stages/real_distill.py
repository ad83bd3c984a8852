"""A real ``distill`` of 50 iterations: its wall time beside that of the replays alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from gpu_stages.replays import record_for
from gpu_stages.settings import Record, Settings
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill import loop as loop_module
from trajmatch.distill.gradients import Graph
from trajmatch.distill.parallel import Division
from trajmatch.distill.problem import Problem
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.streams import Outputs

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
    replays = Replays(settings)
    began = time.perf_counter()
    with mock.patch.object(loop_module, "gradients_for", replays.for_run):
        distill(config)
    lines = [json.loads(line) for line in config.log_path.read_text().splitlines()]
    wall = statistics.median(line["seconds"] for line in lines[2:])  # of the same iterations
    record.put("seconds", time.perf_counter() - began)
    record.put("wall_seconds_an_iteration", wall)
    if replays.graph is None or not replays.graph.recorded:
        record.fault("the iterations ran without a graph")
        return
    replay = statistics.median(replays.seconds())
    record.put("replay_seconds", replay)
    record.put("share_of_the_host", 1 - replay / wall)
    print(f"{1000 * wall:.1f} ms an iteration, {1000 * replay:.1f} ms of them in the replay")


class Replays:
    """A graph whose replays are timed, by events where it is on a GPU."""

    def __init__(self, settings: Settings) -> None:
        self._record, self._cuda = record_for(settings), settings.device == "cuda"
        self._marks: list[tuple[Any, Any]] = []
        self.graph: Graph | None = None

    def for_run(self, problem: Problem, division: Division) -> Graph:
        """In the place of :func:`trajmatch.distill.gradients.gradients_for`."""
        self.graph = Graph(problem.objective, self._recorded)
        return self.graph

    def seconds(self) -> list[float]:
        """Times of the replays from the third iteration on.

        The two before are a comparison, and that of the iteration which records.
        """
        if not self._cuda:
            return [ended - began for began, ended in self._marks[2:]]
        torch.cuda.synchronize()
        return [began.elapsed_time(ended) / 1000 for began, ended in self._marks[2:]]

    def _recorded(self, function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        outputs, replay = self._record(function)

        def marked() -> None:
            began = self._mark()
            replay()
            self._marks.append((began, self._mark()))

        return outputs, marked

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
