"""Which expert an outer iteration follows, and from which epoch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trajmatch.errors import UserError
from trajmatch.experts.config import spans


@dataclass(frozen=True)
class StartEpochWindow:
    """Start epochs ``s ~ U{minimum .. end - 1}``, with an end that may grow.

    MTT's window is ``0 .. maximum - 1`` from the beginning. DATM aligns the difficulty by both ends
    (``T-`` and ``T+``), and goes from easy to hard: the end is
    ``min(T + floor((T+ - T) it / E), T+)`` in outer iteration ``it`` (Guo et
    al., ICLR 2024).

    Attributes:
        minimum: First start epoch (DATM: ``T-``).
        maximum: End of the window, itself never drawn (DATM: ``T+``).
        first_end: The end in the first iteration (DATM: ``T``); None is ``maximum``.
        growth: Outer iterations until the end is ``maximum`` (DATM: ``E``).
    """

    minimum: int
    maximum: int
    first_end: int | None = None
    growth: int = 0

    def end(self, iteration: int) -> int:
        """The end of the window in an outer iteration, counted from 0."""
        if self.first_end is None or iteration >= self.growth:
            return self.maximum
        return self.first_end + (self.maximum - self.first_end) * iteration // self.growth

    def draw(self, iteration: int, generator: torch.Generator) -> int:
        """The start epoch of one match of an outer iteration, counted from 0."""
        return int(torch.randint(self.minimum, self.end(iteration), (), generator=generator))

    def check(
        self, snapshots_kept: Collection[int], expert_epochs: int, between: Collection[int] = ()
    ) -> None:
        """Makes sure that every segment of the window is in the store.

        Args:
            snapshots_kept: Epochs of which the store has the parameters.
            expert_epochs: Length ``M`` of a segment.
            between: Epochs after the start, other than ``M``, that matching terms look at.

        Raises:
            UserError: A start epoch, or one that is needed after it, is not among them.
        """
        starts = range(self.minimum, self.maximum)
        needed = {start + after for start in starts for after in (0, *between, expert_epochs)}
        missing = sorted(needed - set(snapshots_kept))
        if missing:
            last_start = self.maximum - 1
            raise UserError(
                f"--max-start-epoch {self.maximum} with --expert-epochs {expert_epochs} needs the "
                f"experts' parameters up to epoch {last_start} + {expert_epochs} = "
                f"{last_start + expert_epochs}, but they have epochs {spans(snapshots_kept)} "
                f"(missing: {spans(missing)}); lower one of the two, or train experts for longer"
            )


@dataclass
class ExpertOrder:
    """Experts one after another in shuffled order, shuffled anew when all have been used.

    Attributes:
        count: Number of experts.
        order: The current permutation. ``[count]``, int64; empty before the first draw.
        used: How many of it have been used.
    """

    count: int
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    used: int = 0

    def draw(self, generator: torch.Generator) -> int:
        """The expert of one match."""
        if self.used >= len(self.order):
            self.order = torch.randperm(self.count, generator=generator)
            self.used = 0
        expert = int(self.order[self.used])
        self.used += 1
        return expert
