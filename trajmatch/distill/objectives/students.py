"""Students of the objective train-and-test: their draws, and what it needs of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trajmatch.distill import objectives
from trajmatch.distill.batches import student_batches
from trajmatch.distill.setup import Setup
from trajmatch.ops.arguments import DsaReplay


@dataclass(frozen=True)
class Draw:
    """The random choices for one student.

    Attributes:
        names: Iteration and number of the student, which name its own streams.
        before: Steps ``K`` before the window.
        batches: Indices into the synthetic images, one vector for each of the ``K + W`` steps.
        rows: Indices of the real images of the test. ``[R]``.
        final: False if the objective chooses the window later.
    """

    names: tuple[int, int]
    before: int
    batches: Sequence[Tensor]
    rows: Tensor
    final: bool = True

    def logged(self) -> dict[str, Any]:
        """Return the choices that the log records, by name."""
        return {"window_start": self.before} if self.final else {}


class Draws(objectives.Draws):
    """The random state of a run: steps before the window, student batches and real batches.

    Args:
        setup: The run.
        window: Most steps of a window.
        choose: True if the objective chooses the window among the steps up to the last one.
    """

    def __init__(self, setup: Setup, window: int, choose: bool = False) -> None:
        super().__init__(setup.config.seed, "before", "batches", "rows")
        self._settings, self._real = setup.config, len(setup.training.train_images)
        self._window, self._choose = window, choose

    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw one student."""
        settings, (first, last) = self._settings, self._settings.before
        before = int(torch.randint(first, last + 1, (), generator=self.streams["before"]))
        before = last if self._choose else before
        count, stream = before + self._window, self.streams["batches"]
        batches = student_batches(images, settings.batch_syn, count, stream)
        rows = torch.randperm(self._real, generator=self.streams["rows"])[: settings.real_batch]
        return Draw((iteration, number), before, batches, rows, not self._choose)


@dataclass(frozen=True)
class Student:
    """A student, and the real images that it is tested on.

    Attributes:
        draw: What was drawn, on the device.
        start: Its first parameters. ``[P]``.
        dsa: Augmentation before the window and in it; None: none.
        dsa_rows: Augmentation of the real images (:func:`trajmatch.ops.dsa`); None: none.
    """

    draw: Draw
    start: Tensor
    dsa: tuple[DsaReplay | None, DsaReplay | None] = (None, None)
    dsa_rows: Tensor | None = None
