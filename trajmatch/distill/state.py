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

#: Gradients by whose median it is judged how large they usually are.
USUAL = 100


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
    """Images, labels and step size after some iteration, with what speaks for them.

    Attributes:
        images: ``[n, C, H, W]``.
        labels: ``[n]`` or ``[n, K]``.
        step_size: eta.
        iteration: Outer iterations done.
        accuracy: Mean accuracy in percent by which it was chosen.
    """

    images: Tensor
    labels: Tensor
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
        skips: Updates in a row, up to now, that a matching loss above the limit left out.
        gradient_norms: Norms of the last gradients of the images, :data:`USUAL` at most, whether
            they were followed or not.
        label_buffer: Momentum buffer of the labels. ``[n, K]``; None where they are not learned.
        average: Moving average of the images. ``[n, C, H, W]``; None where there is none.
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
    skips: int = 0
    gradient_norms: list[float] = field(default_factory=list)
    label_buffer: Tensor | None = None
    average: Tensor | None = None
    best: Iterate | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)

    @property
    def result(self) -> SyntheticSet:
        """What the run would give if it ended now: the images, or their average, with labels."""
        images = self.synthetic.images if self.average is None else self.average
        return SyntheticSet(images, self.synthetic.labels)

    def iterate(self, accuracy: float) -> Iterate:
        """The result as it is, with the accuracy that it was found to have."""
        result = self.result
        return Iterate(result.images, result.labels, self.step_size.value, self.iteration, accuracy)
