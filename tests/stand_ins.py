"""What several tests put in the place of something else, or look at it with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench.recorders import call_again
from torch import Tensor

from trajmatch.data.dsa import DSA
from trajmatch.distill import DistillConfig
from trajmatch.distill.gradients import one_by_one
from trajmatch.distill.objectives import Objective, OuterGradient, Plan, Results, read
from trajmatch.distill.objectives.match_trajectory import Match, MatchTrajectory
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.objectives.start import StartEpochWindow
from trajmatch.distill.setup import Setup
from trajmatch.images.parametrisation import Tensors
from trajmatch.images.pixels import Pixels
from trajmatch.ops.arguments import DsaReplay
from trajmatch.training import Outcome

#: Built-in parametrisations, with the images of a class that fit into the 128 values of two images
#: of 8 x 8 pixels.
PARAMETRISATIONS = {
    "flip": 4,
    "upsample": 8,
    "frequency:coefficients=32": 4,
    "implicit:width=4,steps=20": 128 // (12 + 20 + 5),
    "palette:colours=4": 128 // (16 + 4 + 8),
}


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
    images: Any = SimpleNamespace(train_images=torch.empty(0, 1, 8, 8), loss="cross_entropy")
    setup = Setup(
        config=DistillConfig(experts=Path(), out=Path(), **settings),
        experts=None,
        network={},
        dataset=images,
        training=images,
        held_out=(torch.empty(0), torch.empty(0)),
        model=model,
        dsa=DSA("none"),
        parametrisation=Pixels(),
        images_per_class=1,
        source=None,
        lr_init=0.01,
        device=next(model.parameters()).device,
    )
    return MatchTrajectory(setup=setup, window=StartEpochWindow(0, 1), loss=loss)


def match_of(
    start: Tensor,
    expert: Mapping[int, Tensor],
    batches: Sequence[Tensor],
    augment: DsaReplay | None = None,
    loss_scale: float = 1.0,
    place: tuple[int, int] = (8, 8),
) -> Match:
    """A match of batches that a test draws, with images of height and width ``place``."""
    sizes, rows = tuple(map(len, batches)), None
    if augment is not None:
        rows = torch.cat([augment.dsa_parameters(i, n, *place) for i, n in enumerate(sizes)])
        rows = rows.to(start.device)
    kappa = torch.tensor(loss_scale, dtype=start.dtype, device=start.device)
    iteration = torch.zeros((), dtype=torch.int64, device=start.device)
    return Match(start, dict(expert), sizes, torch.cat([*batches]), rows, kappa, iteration)


def gradients_of(
    objective: Objective, tasks: Sequence[Any], parameters: Tensors, plan: Plan | None = None
) -> list[OuterGradient]:
    """The gradients of tasks, one after another."""
    return read(one_by_one(objective, tasks, parameters, plan or Plan()), parameters)


def results_of(gradients: Sequence[OuterGradient]) -> list[Results]:
    """The results that ``read`` turns into these gradients."""
    return [
        (
            torch.tensor(each.loss, dtype=torch.float64),
            torch.tensor(each.meaningful),
            *each.gradients.values(),
            *each.memory.values(),
        )
        for each in gradients
    ]


def each_network(train: Callable[..., Outcome]) -> Callable[..., Iterator[Outcome]]:
    """In the place of ``train_networks``: calls ``train`` as ``train_fresh`` for each network."""

    def train_networks(sets, spec, protocol, tests, *rest) -> Iterator[Outcome]:
        for images, labels, seed in sets:
            yield train(images, labels, spec, protocol, *tests, seed, *rest)

    return train_networks
