"""All that an outer loop carries from one iteration to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.schedule import ExpertOrder
from trajmatch.distill.step_size import StepSize
from trajmatch.random import generator


@dataclass(frozen=True)
class Streams:
    """The loop's random streams; each is drawn from for one purpose only.

    Augmentation has no stream here: its seed is derived anew for every iteration, because it is
    replayed within one.

    Attributes:
        experts: Order of the experts.
        start_epochs: Start epochs.
        batches: Permutations of the synthetic images.
    """

    experts: torch.Generator
    start_epochs: torch.Generator
    batches: torch.Generator

    @classmethod
    def of_seed(cls, seed: int) -> Streams:
        """The streams at the beginning of a run."""
        return cls(
            experts=generator(seed, "distill", "experts"),
            start_epochs=generator(seed, "distill", "start_epochs"),
            batches=generator(seed, "distill", "batches"),
        )


@dataclass(frozen=True)
class Iterate:
    """Images and step size after some iteration, with what speaks for them.

    Attributes:
        images: ``[n, C, H, W]``.
        step_size: eta.
        iteration: Outer iterations done.
        accuracy: Mean accuracy in percent by which it was chosen.
    """

    images: Tensor
    step_size: float
    iteration: int
    accuracy: float


@dataclass
class State:
    """What a checkpoint keeps.

    Attributes:
        synthetic: Images and labels as they are.
        buffer: Momentum buffer of the images. ``[n, C, H, W]``.
        step_size: eta with its momentum buffer.
        lr_init: eta at the beginning.
        streams: Random streams.
        order: Where the loop is among the experts.
        iteration: Outer iterations done.
        applied: How many of them changed the images.
        refusals: Refused updates in a row, up to now.
        best: The best iterate evaluated up to now, where the result is chosen by accuracy.
        scores: Results of all evaluations up to now.
    """

    synthetic: SyntheticSet
    buffer: Tensor
    step_size: StepSize
    lr_init: float
    streams: Streams
    order: ExpertOrder
    iteration: int = 0
    applied: int = 0
    refusals: int = 0
    best: Iterate | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)

    def iterate(self, accuracy: float) -> Iterate:
        """The images and the step size as they are, with the accuracy they were found to have."""
        return Iterate(self.synthetic.images, self.step_size.value, self.iteration, accuracy)
