"""Start epochs: where students start in the experts' trajectories."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from trajmatch.errors import UserError
from trajmatch.experts.config import spans


@dataclass(frozen=True)
class StartEpochWindow:
    """Start epochs ``s ~ U{minimum .. end - 1}``, with an end that may grow.

    MTT uses ``0 .. maximum - 1`` throughout. DATM (Guo et al., ICLR 2024) goes from easy to hard:
    ``end = min(T + floor((T+ - T) it / E), T+)`` in outer iteration ``it``.
    """

    minimum: int  # DATM: T-
    maximum: int  # final end, itself never drawn (DATM: T+)
    first_end: int | None = None  # end in the first iteration (DATM: T); None: maximum
    growth: int = 0  # outer iterations until the end is maximum (DATM: E)

    def end(self, iteration: int) -> int:
        """Return the end of the window in an outer iteration, counted from 0."""
        if self.first_end is None or iteration >= self.growth:
            return self.maximum
        return self.first_end + (self.maximum - self.first_end) * iteration // self.growth

    def draw(self, iteration: int, generator: torch.Generator) -> int:
        """Draw the start epoch of one match of an outer iteration, counted from 0."""
        return int(torch.randint(self.minimum, self.end(iteration), (), generator=generator))

    def check(self, snapshots_kept: Collection[int], epochs_after: Sequence[int]) -> None:
        """Raise UserError if a segment needs an epoch that is not in ``snapshots_kept``."""
        expert_epochs = epochs_after[-1]
        starts = range(self.minimum, self.maximum)
        needed = {start + after for start in starts for after in (0, *epochs_after)}
        missing = sorted(needed - set(snapshots_kept))
        if missing:
            last_start = self.maximum - 1
            raise UserError(
                f"--max-start-epoch {self.maximum} with --expert-epochs {expert_epochs} needs the "
                f"experts' parameters up to epoch {last_start} + {expert_epochs} = "
                f"{last_start + expert_epochs}, but they have epochs {spans(snapshots_kept)} "
                f"(missing: {spans(missing)}); lower one of the two, or train experts for longer"
            )
