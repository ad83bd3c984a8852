"""What several tests put in the place of something else, or look at it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from trajmatch.data.dsa import DSA
from trajmatch.distill.objectives.match_trajectory import MatchTrajectory
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.objectives.schedule import StartEpochWindow
from trajmatch.images.pixels import Pixels
from trajmatch.recording import call_again


class Counting:
    """Records as ``call_again`` does, and counts recordings and replays."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recordings += 1
        outputs, replay = call_again(function)

        def counted() -> None:
            self.replays += 1
            replay()

        return outputs, counted


class Interrupter:
    """A display of progress that interrupts a run after some iteration."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration

    def update(self, done: int, **numbers: float) -> None:
        if done == self._iteration:
            raise KeyboardInterrupt


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The objects of a log with one JSON object in each line."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def objective_of(model: torch.nn.Module, loss: MatchingLoss, **settings: Any) -> MatchTrajectory:
    """The objective of a run with no store: for matches that a test makes by hand."""
    chosen = {"student_momentum": 0.0, "precise": False, "gradient": "exact", **settings}
    size: Any = SimpleNamespace(manifest={"network": {"image_size": 8}})
    config: Any = SimpleNamespace(**chosen)
    device = next(model.parameters()).device
    window, shape = StartEpochWindow(0, 1), torch.Size([0])  # which pixels do not ask for
    return MatchTrajectory(config, model, size, window, loss, DSA("none"), Pixels(), shape, device)
